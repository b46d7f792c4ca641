"""Whole datasets, with Ray Data."""
