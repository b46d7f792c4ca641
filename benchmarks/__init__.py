"""One harness, one file per question; each ends in one JSON line. `python -m benchmarks.bench_server`."""
