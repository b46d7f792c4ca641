"""The demo: a real backbone and real labelled text, fetched once into a cache, and the whole story told on them."""
