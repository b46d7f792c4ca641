"""The log of a run of two epochs."""

from typing import Any

LINES: list[dict[str, Any]] = [
    {"epoch": 1, "loss": 0.7, "accuracy": 0.5, "baseline": 0.6, "calibration": {"temperature": 1.5}, "seconds": 2},
    {"epoch": 2, "loss": 0.4, "accuracy": 0.8, "baseline": 0.6, "thresholds": [0.5], "seconds": 1},
]
