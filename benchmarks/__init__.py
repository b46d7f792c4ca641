"""Benchmarks: one script per question, whose last output line is JSON. `python -m benchmarks.server.bench_server`."""
