"""Benchmarks: one script per question, whose last output line is JSON. `python -m benchmarks.bench_server`."""
