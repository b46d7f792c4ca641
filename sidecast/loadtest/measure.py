"""Figures out of the calls that a level made. Pure: times are seconds of one clock, wherever it began.

A call counts where it was **due** within the window (closed loop: sent), and its latency runs from then, so that a
server that stalls is seen by everything that should have been asked meanwhile. Throughput counts what **ended**
within the window, whenever it was due: under overload the two differ.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

PERCENTILES = (50, 90, 95, 99)
BINS_PER_DECADE = 20
"""Of the latency histogram: 12 % wide."""


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
    """Of a streamed text: when each piece came, and its tokens."""

    @property
    def latency(self) -> float:
        """Seconds from the time the call was due to its end."""
        return self.ended - self.due


@dataclass(frozen=True, slots=True)
class Window:
    """The span of time in which calls count, in seconds of one clock."""

    begins: float
    ends: float

    def __contains__(self, moment: float) -> bool:
        return self.begins <= moment < self.ends

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.ends - self.begins


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the sorted values that so many per cent are not above: a value that was seen."""
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def spread_ms(seconds: Iterable[float]) -> dict[str, float] | None:
    """Percentiles, maximum and mean in milliseconds; None of nothing."""
    ordered = sorted(1e3 * value for value in seconds)
    if not ordered:
        return None
    figures = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    return figures | {"max": ordered[-1], "mean": math.fsum(ordered) / len(ordered)}


def histogram(seconds: Sequence[float]) -> dict[str, list[float]] | None:
    """Counts in bins of equal width on a logarithmic scale; `edges_ms` has one number more than `counts`."""
    bins = [math.floor(BINS_PER_DECADE * math.log10(max(value, 1e-6) * 1e3)) for value in seconds]
    if not bins:
        return None
    counts = [0.0] * (max(bins) - min(bins) + 1)
    for place in bins:
        counts[place - min(bins)] += 1
    edges = [10 ** (place / BINS_PER_DECADE) for place in range(min(bins), max(bins) + 2)]
    return {"edges_ms": edges, "counts": counts}


def summarise(calls: Sequence[Call], window: Window, timeout_s: float) -> dict[str, Any]:
    """A level's figures: the document's fields of that name."""
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
    """Failures by code and reason, commonest first, each with one message of its kind."""
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
    return {task: {"answered": len(given), "latency_ms": spread_ms(given)} for task, given in sorted(tasks.items())}


def summarise_stream(calls: Sequence[Call], window: Window) -> dict[str, Any]:
    """Of streamed texts: time to the first piece, from when the request was due; pauses between pieces; tokens.

    Tokens a second are those that came within the window, of texts that began before it too.
    """
    counted = [call for call in calls if call.due in window and call.failure is None and call.pieces]
    times = [[moment for moment, _ in call.pieces] for call in counted]
    tokens = sum(count for call in calls for moment, count in call.pieces if moment in window)
    mine = [sum(count for _, count in call.pieces) for call in counted]
    return {
        "first_ms": spread_ms(call.pieces[0][0] - call.due for call in counted),
        "between_ms": spread_ms(later - sooner for each in times for sooner, later in pairwise(each)),
        "tokens_per_s": tokens / window.seconds,
        "tokens_per_text": sum(mine) / len(mine) if mine else None,
    }
