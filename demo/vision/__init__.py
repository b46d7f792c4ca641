"""The demo with images: questions about pictures, a side network that reads both, a server that answers, and a page
that shows the answers."""
