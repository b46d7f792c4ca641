"""Answers whole datasets with Ray Data. No imports here: Ray loads the modules of this package by name."""
