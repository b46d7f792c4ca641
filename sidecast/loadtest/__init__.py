"""`sidecast bench`: load on a running server, what its callers saw, and what the server counted meanwhile.

plan.py what to send and for how long; inputs.py the rows; loops.py callers and arrivals; runner.py levels and windows;
asking.py how a request is sent; measure.py makes figures of what came back; scrape.py reads the server's metrics;
report.py tables, JSON and notes; plot.py pictures. The benchmarks put load on their servers with the same parts.
"""
