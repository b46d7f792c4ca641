"""The numbers of one line of `metrics.jsonl`, with the names that trackers show."""

from collections.abc import Iterator, Mapping
from typing import Any


def numbers_of(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of what a line measures, but for the epoch; of what is nested, `calibration/temperature`."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "epoch":
            yield prefix + name, value
