"""Seconds that a replica's device takes for a batch, by its rows: measured, and interpolated linearly."""

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.samples import RESULTS, BenchmarkError

MEASURED = re.compile(r"(?:server|(\d+) replicas?,) (\d+)(?: callers)?$")
"""Variants of `bench_server`, "server 64", and of more replicas, "2 replicas, 64 callers": single rows, one each."""


@dataclass(frozen=True, slots=True)
class Line:
    """A measurement: a number of callers, each with one row at a time, on a number of replicas."""

    replicas: int
    callers: int
    batch_rows: float
    rows_per_s: float
    p50_ms: float
    p99_ms: float
    device_busy: float

    @property
    def batch_s(self) -> float:
        """Seconds that the device computes a batch."""
        return self.device_busy * self.batch_rows * self.replicas / self.rows_per_s


@dataclass(frozen=True, slots=True)
class Service:
    """Seconds of a batch.

    Args:
        points: (rows, seconds), both increasing. Beyond the last point, the slope of the last segment continues.
        kept: cost of a row whose activations are cached, as a share of that of another row.
        overhead_s: seconds that a request spends outside the queue and the device.
    """

    points: tuple[tuple[float, float], ...]
    kept: float = 0.1
    overhead_s: float = 0.0

    def __post_init__(self) -> None:
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in zip(self.points, self.points[1:], strict=False))
        if not self.points or not rising or self.points[0][0] <= 0 or self.points[0][1] <= 0:
            raise BenchmarkError(f"service times need more rows in more time, all above zero, got {self.points}")

    def seconds(self, rows: float) -> float:
        """Return the seconds of a batch. Fewer rows than were measured cost as much as the fewest measured."""
        points = self.points
        index = bisect_left(points, (rows,))
        if index == 0 or len(points) == 1:
            return points[0][1] * (1.0 if index == 0 else rows / points[0][0])
        (r0, s0), (r1, s1) = points[min(index, len(points) - 1) - 1], points[min(index, len(points) - 1)]
        return s0 + (rows - r0) * (s1 - s0) / (r1 - r0)

    def capacity(self, most: int) -> float:
        """Return the rows a second of a saturated replica."""
        return max(rows / self.seconds(rows) for rows in range(1, most + 1))

    def faster(self, times: float) -> "Service":
        """Return the service times of a device that is `times` as fast."""
        return replace(self, points=tuple((rows, seconds / times) for rows, seconds in self.points))


def read_lines(path: Path) -> list[Line]:
    """Read the measurements of a result file, sorted by replicas and callers.

    Raises:
        BenchmarkError: unreadable, or there are none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        lines = [line for name, figures in _variants(document).items() if (line := _line(name, figures))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(f"cannot read measurements from {path.name}: {error}") from None
    if not lines:
        raise BenchmarkError(f'{path.name} has no variants like "server 64" or "2 replicas, 64 callers"')
    return sorted(lines, key=lambda line: (line.replicas, line.callers))


def fit(lines: Sequence[Line], kept: float = 0.1) -> Service:
    """Return the service times of the lines of one replica. Time that falls with more rows is noise: it stays level."""
    ones = sorted((line for line in lines if line.replicas == 1), key=lambda line: line.batch_rows)
    points, level = [], 0.0
    for line in ones:
        level = max(level, line.batch_s)
        if not points or line.batch_rows > points[-1][0]:
            points.append((line.batch_rows, level))
    if not points:
        raise BenchmarkError("no line of one replica to take service times from")
    alone = min(ones, key=lambda line: line.callers)
    return Service(tuple(points), kept, max(0.0, alone.p50_ms / 1e3 - alone.batch_s) if alone.callers == 1 else 0.0)


def newest(folder: Path = RESULTS) -> Path:
    """Return the newest result file of `bench_server`."""
    for path in sorted(folder.glob("*-server.json"), reverse=True):
        return path
    raise BenchmarkError("no results of bench_server to take service times from: name a file with --service")


def _variants(document: Mapping[str, Any]) -> Mapping[str, Any]:
    reports = document.get("reports", {})
    return reports["server"]["variants"] if "server" in reports else document["variants"]


def _line(name: str, figures: Mapping[str, Any]) -> Line | None:
    if not (match := MEASURED.match(name)):
        return None
    names = ("batch_rows", "rows_per_s", "p50_ms", "p99_ms", "device_busy")
    return Line(int(match[1] or 1), int(match[2]), *(float(figures[name]["median"]) for name in names))
