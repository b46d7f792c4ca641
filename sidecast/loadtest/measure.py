"""Figures made from the calls of a level. Pure functions: times are seconds of any one clock.

A call counts if it was **due** within the window (closed loop: sent), and its latency runs from then, so that a stalled
server delays every call that was due meanwhile. Throughput counts calls that **ended** within the window, whenever they
were due: under overload the two differ.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

PERCENTILES = (50, 90, 95, 99)
BINS_PER_DECADE = 20
"""Bins of the latency histogram, each 12 % wide."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call was not answered."""

    code: str
    """gRPC's, as RESOURCE_EXHAUSTED."""
    reason: str
    message: str


SHED_CODE = "RESOURCE_EXHAUSTED"


@dataclass(slots=True, kw_only=True)
class Call:
    """One request, from the time it should have been sent."""

    task: str
    rows: int
    due: float
    sent: float = math.nan
    ended: float = math.nan
    failure: Failure | None = None
    pieces: list[tuple[float, int]] = field(default_factory=list)
    """For a streamed text: by piece, its time and number of tokens."""

    @property
    def latency(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended - self.due


@dataclass(frozen=True, slots=True)
class Window:
    """The time of a level that is measured."""

    begins: float
    ends: float

    def __contains__(self, moment: float) -> bool:
        return self.begins <= moment < self.ends

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.ends - self.begins


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the sorted values that at least `percent` per cent do not exceed (nearest rank)."""
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def spread_ms(seconds: Iterable[float]) -> dict[str, float] | None:
    """Return percentiles, maximum and mean in milliseconds; None without values."""
    ordered = sorted(1e3 * value for value in seconds)
    if not ordered:
        return None
    figures = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    return figures | {"max": ordered[-1], "mean": math.fsum(ordered) / len(ordered)}


def histogram(seconds: Sequence[float]) -> dict[str, list[float]] | None:
    """Count values in bins of equal width on a logarithmic scale; `edges_ms` is one longer than `counts`."""
    bins = [math.floor(BINS_PER_DECADE * math.log10(max(value, 1e-6) * 1e3)) for value in seconds]
    if not bins:
        return None
    counts = [0.0] * (max(bins) - min(bins) + 1)
    for index in bins:
        counts[index - min(bins)] += 1
    edges = [10 ** (index / BINS_PER_DECADE) for index in range(min(bins), max(bins) + 2)]
    return {"edges_ms": edges, "counts": counts}


def summarise(calls: Sequence[Call], window: Window, timeout_s: float) -> dict[str, Any]:
    """Return a level's figures, named as the document's fields."""
    counted = [call for call in calls if call.due in window]
    answered = [call for call in counted if call.failure is None]
    ended = [call for call in calls if call.failure is None and call.ended in window]
    latencies = [call.latency for call in answered]
    return {
        "requests": len(counted),
        "answered": len(answered),
        "due_per_s": len(counted) / window.seconds,
        "requests_per_s": len(ended) / window.seconds,
        "rows_per_s": sum(call.rows for call in ended) / window.seconds,
        "goodput_per_s": sum(call.latency <= timeout_s for call in ended) / window.seconds,
        "latency_ms": spread_ms(latencies),
        "histogram": histogram(latencies),
        "errors": group_failures(counted),
        "shed": sum(call.failure is not None and call.failure.code == SHED_CODE for call in counted),
        "by_task": _by_task(answered),
    }


def group_failures(calls: Iterable[Call]) -> list[dict[str, Any]]:
    """Group failures by code and reason, commonest first, with one message per group."""
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    for call in calls:
        if (failure := call.failure) is not None:
            kind = {"code": failure.code, "reason": failure.reason, "count": 0, "message": failure.message}
            kinds.setdefault((failure.code, failure.reason), kind)["count"] += 1
    return sorted(kinds.values(), key=lambda kind: -kind["count"])


def _by_task(answered: Iterable[Call]) -> dict[str, Any]:
    tasks: dict[str, list[float]] = {}
    for call in answered:
        tasks.setdefault(call.task, []).append(call.latency)
    return {
        task: {"answered": len(latencies), "latency_ms": spread_ms(latencies)}
        for task, latencies in sorted(tasks.items())
    }


def summarise_stream(calls: Sequence[Call], window: Window) -> dict[str, Any]:
    """Return figures of streamed texts: seconds from due to the first piece, pauses between pieces, tokens.

    Tokens per second count all tokens within the window, also of texts that began before it.
    """
    counted = [call for call in calls if call.due in window and call.failure is None and call.pieces]
    times = [[moment for moment, _ in call.pieces] for call in counted]
    tokens = sum(count for call in calls for moment, count in call.pieces if moment in window)
    lengths = [sum(count for _, count in call.pieces) for call in counted]
    return {
        "first_ms": spread_ms(call.pieces[0][0] - call.due for call in counted),
        "between_ms": spread_ms(later - sooner for arrivals in times for sooner, later in pairwise(arrivals)),
        "tokens_per_s": tokens / window.seconds,
        "tokens_per_text": sum(lengths) / len(lengths) if lengths else None,
    }
