"""The demo: a real backbone and real labelled text, fetched once into a cache, and a story that trains, serves and
swaps on them."""
