"""`sidecast bench`: load on a running server, what its callers saw, and what the server counted meanwhile.

plan.py what to send and for how long; inputs.py the rows; runner.py when; asking.py how; measure.py makes figures of
what came back; scrape.py reads the server's metrics; report.py tables, JSON and notes; plot.py pictures.
"""
