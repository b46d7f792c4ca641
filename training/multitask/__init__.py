"""The tasks of a run: one, or several that share a side network."""
