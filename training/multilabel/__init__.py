"""Tasks with several labels: their targets in data files, and the thresholds from which a label is answered."""
