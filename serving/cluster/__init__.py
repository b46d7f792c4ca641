"""The server on Ray Serve, and `sidecast deploy`. No imports here: Ray loads the modules of this package by name."""
