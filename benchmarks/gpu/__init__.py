"""Everything that only a GPU can tell, in one command of at most eight minutes: see `benchmarks.gpu.__main__`."""
