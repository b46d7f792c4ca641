"""The same server on Ray Serve, and `sidecast deploy`. A single process works without this folder."""
