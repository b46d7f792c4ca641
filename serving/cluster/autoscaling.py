"""A policy for Ray Serve's autoscaler: how many replicas there should be.

Imports neither Ray nor another module of this project: Ray pickles this module by value and runs it in its controller.
It reads Ray's AutoscalingContext by attribute names. Delays are kept here and not by Ray: Ray restarts a delay whenever
the desired number equals the target for one tick, and in the end takes the number of one moment.
docs/decisions/0012-scaling.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

RUNNING = "running_requests"
"""Ray's name for the calls in flight on a replica, with the streams that last as long as their caller."""
IN_FLIGHT = "in_flight"
"""Calls in flight that end by themselves, as replicas report them."""
QUEUE = "queued_tokens"
"""Tokens that wait on a replica, as replicas report them."""
IDLE = 0.01
"""A device that is busy for a smaller share of the time counts as idle, so that health probes keep no replica alive."""
MIN_GROWTH = 4
"""Replicas that may be asked for in any case, however few run."""
ROUNDING = 1e-9
"""Fractions of a replica below this are rounding errors."""


class Point(Protocol):
    """One sample of a replica's figure."""

    timestamp: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLoad:
    """The load of all replicas at one moment: what a decision is based on."""

    now: float
    """Seconds, of any monotonic clock."""
    target: int
    """Replicas that are asked for now."""
    running: int
    """Replicas that take traffic."""
    silent: int = 0
    """Running replicas without a recent report."""
    requests: float = 0.0
    """Calls in flight and waiting, of all replicas that report."""
    work: float = 0.0
    """Work in devices, by the signal. It exceeds the number of devices when rows wait."""
    least: int = 0
    """Fewest replicas that are allowed."""
    most: int = 1
    """Most replicas that are allowed."""


class LoadPolicy:
    """Asks for enough replicas for the calls in flight and for the devices' work. Ray keeps the state between calls.

    Args:
        target_requests: calls in flight and waiting at one replica.
        target_busy: value that `signal` should have at a replica, above 0 and up to 1.
        upscale_delay_s: more replicas are started after more were needed all this time: the smallest number needed.
        downscale_delay_s: replicas are stopped after fewer were needed all this time: the largest number needed stays.
        queue_tokens: this many waiting tokens on a replica are ignored; each further as many count as a busy device.
        margin: share of the targets that must be free before replicas are stopped.
        growth: at most this many times the running replicas are asked for, and at least `MIN_GROWTH`.
        stale_s: reports older than this are ignored, in seconds. The clocks of machines must differ by less.
        signal: the figure that says how much of a replica's device is used, from 0 to 1: "busy", the share of the time
            that it computed, or "load", the share of what it could do in full batches. The application uses "load".

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        *,
        target_requests: float = 64.0,
        target_busy: float = 0.8,
        upscale_delay_s: float = 5.0,
        downscale_delay_s: float = 300.0,
        queue_tokens: float = 8192.0,
        margin: float = 0.1,
        growth: float = 2.0,
        stale_s: float = 45.0,
        signal: str = "busy",
    ) -> None:
        _require(target_requests > 0, "target_requests must be > 0", target_requests)
        _require(0 < target_busy <= 1, "target_busy must be > 0 and <= 1", target_busy)
        _require(0 <= upscale_delay_s < math.inf, "upscale_delay_s must be >= 0", upscale_delay_s)
        _require(0 <= downscale_delay_s < math.inf, "downscale_delay_s must be >= 0", downscale_delay_s)
        _require(queue_tokens > 0, "queue_tokens must be > 0", queue_tokens)
        _require(0 <= margin < 1, "margin must be >= 0 and < 1", margin)
        _require(growth > 1, "growth must be > 1", growth)
        _require(stale_s > 0, "stale_s must be > 0", stale_s)
        self._target_requests = target_requests
        self._target_busy = target_busy
        self._up_s = upscale_delay_s
        self._down_s = downscale_delay_s
        self._queue_tokens = queue_tokens
        self._margin = margin
        self._growth = growth
        self._stale_s = stale_s
        self._signal = signal

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Replicas to ask for, and the state for the next call. Ray calls this about ten times a second."""
        return self.decide(self.read(ctx), ctx.policy_state or {})

    def read(self, ctx: Any) -> FleetLoad:
        """The load that Ray's AutoscalingContext describes."""
        raw = ctx.raw_metrics or {}
        since = ctx.current_time - self._stale_s

        def recent(name: str) -> dict[Any, float]:
            """The figure's mean of each replica that reported it recently."""
            series = raw.get(name, {})
            means = {replica: _mean(series.get(replica, ()), since) for replica in ctx.running_replicas}
            return {replica: mean for replica, mean in means.items() if mean is not None}

        busy = recent(self._signal)
        queued = recent(QUEUE)
        # without direct ingress Ray counts at its handles, and replicas may report none
        in_flight = recent(RUNNING) | recent(IN_FLIGHT)
        is_reported = RUNNING in raw or IN_FLIGHT in raw
        requests = sum(in_flight.values()) + ctx.total_queued_requests if is_reported else ctx.total_num_requests
        return FleetLoad(
            now=ctx.current_time,
            target=ctx.target_num_replicas,
            running=ctx.current_num_replicas,
            silent=ctx.current_num_replicas - len(busy),
            requests=requests,
            work=sum(self.work(share, queued.get(replica, 0.0)) for replica, share in busy.items()),
            least=ctx.capacity_adjusted_min_replicas,
            most=ctx.capacity_adjusted_max_replicas,
        )

    def decide(self, load: FleetLoad, state: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Replicas to ask for, and the state for the next decision."""
        is_new = state.get("decided") != load.target  # the first decision, or something else set the target
        start = [(load.now, load.target)]
        fewest, most = self.bounds(load)
        ups = _window(start if is_new else state["ups"], load.now, fewest, self._up_s, min)
        downs = _window(start if is_new else state["downs"], load.now, most, self._down_s, max)
        decided = min(max(load.target, ups[0][1]), downs[0][1])
        if load.target > 1:
            decided = max(decided, 1)  # Ray goes to zero only from one
        decided = min(max(decided, load.least), load.most)
        return decided, {"decided": decided, "ups": ups, "downs": downs}

    def bounds(self, load: FleetLoad) -> tuple[int, int]:
        """(fewest, most) replicas that suit the load, regardless of the delays and of `least` and `most`.

        Between them nothing changes. A silent replica counts as idle for the first bound, and as fully used for the
        second. While a replica starts, the second is at least 1: a call may be waiting for it.
        """
        needed = max(load.requests / self._target_requests, load.work / self._target_busy)
        growth = max(MIN_GROWTH, _up(self._growth * load.running), load.target)
        most = _up(needed / (1 - self._margin)) + load.silent
        return min(_up(needed), growth), max(most, 1) if load.running < load.target else most

    def work(self, busy: float, queued: float) -> float:
        """Work of one replica, in devices. A saturated device is busy 1 whatever waits, so waiting tokens are added."""
        return (busy if busy >= IDLE else 0.0) + max(0.0, queued / self._queue_tokens - 1)


def _window(
    past: Sequence[tuple[float, int]], now: float, value: int, seconds: float, best: Callable[[int, int], int]
) -> list[tuple[float, int]]:
    """(time, value) pairs of the last `seconds` that may still become the best one; the first is the best now.

    Args:
        best: min or max.
    """
    kept = [(then, old) for then, old in past if now - then < seconds and old != value and best(old, value) == old]
    return [*kept, (now, value)]


def _mean(series: Sequence[Point], since: float) -> float | None:
    """Mean of the samples; None if the newest is older than `since`, or none is finite."""
    if not series or series[-1].timestamp < since:
        return None
    values = [point.value for point in series if math.isfinite(point.value)]
    return max(0.0, sum(values) / len(values)) if values else None


def _up(replicas: float) -> int:
    return math.ceil(replicas - ROUNDING)


def _require(holds: bool, rule: str, value: float) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {value}")
