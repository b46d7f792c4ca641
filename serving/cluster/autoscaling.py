"""How many replicas there should be: a policy for Ray Serve's autoscaler, and the arithmetic behind it.

Imports neither Ray nor anything of ours: Ray pickles this module by value and runs it in its controller. What it needs
of Ray's AutoscalingContext it reads by name. Delays are kept here and not by Ray, which starts a delay anew whenever
the wish meets the target for one tick, and in the end takes the wish of one moment. docs/decisions/0012-scaling.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

RUNNING = "running_requests"
"""Ray's name for the calls in flight on a replica, streams that last as long as their caller among them."""
IN_FLIGHT = "in_flight"
"""Those that end by themselves, as replicas count them."""
QUEUE = "queued_tokens"
IDLE = 0.01
"""A device that is busy for less than this share of the time is idle: probes keep no replica alive."""
FIRST = 4
"""So many replicas may be asked for whatever runs."""
FUZZ = 1e-9
"""Less than this of a replica is rounding."""


class Point(Protocol):
    """One sample of a replica's."""

    timestamp: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a decision is made of, at one moment."""

    now: float
    """Seconds, of any clock that goes forward."""
    target: int
    """Replicas that were asked for."""
    running: int
    """Replicas that take traffic."""
    silent: int = 0
    """Those of them with no fresh report."""
    requests: float = 0.0
    """In flight and waiting, of all replicas that report."""
    work: float = 0.0
    """What devices do, by the signal, in devices: more than there are where rows wait."""
    least: int = 0
    most: int = 1


class LoadPolicy:
    """Asks for the larger of what requests in flight and the devices' work call for; state in Ray's hands, none here.

    Args:
        target_requests: in flight on a replica, waiting ones too.
        target_busy: what `signal` should come to at a replica, above 0 and up to 1.
        upscale_delay_s: as long must more be called for without a break. It goes up to the least of that time.
        downscale_delay_s: the same for less. It goes down to the most of that time.
        queue_tokens: may wait on a replica for nothing; each as many again count as one more busy device.
        margin: share of the targets that must be free before there are fewer.
        growth: at most this many times the replicas that run are asked for, and `FIRST` in any case.
        stale_s: a replica whose newest report is older says nothing; clocks of machines may differ by less.
        signal: the replicas' figure that says how much of its device is used, from 0 to 1: "busy", the share of its
            time that it computed, or "load", the share of what it could have done in full batches, which is what the
            application scales by.

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
        self._target_requests, self._target_busy = target_requests, target_busy
        self._up_s, self._down_s = upscale_delay_s, downscale_delay_s
        self._queue_tokens, self._margin, self._growth = queue_tokens, margin, growth
        self._stale_s, self._signal = stale_s, signal

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Replicas to ask for, and the state for the next call. What Ray calls, about ten times a second."""
        return self.decide(self.read(ctx), ctx.policy_state or {})

    def read(self, ctx: Any) -> Seen:
        """What an AutoscalingContext of Ray's says."""
        raw, now = ctx.raw_metrics or {}, ctx.current_time

        def fresh(name: str) -> dict[Any, float]:
            series = raw.get(name, {})
            means = {each: _mean(series.get(each, ()), now - self._stale_s) for each in ctx.running_replicas}
            return {each: mean for each, mean in means.items() if mean is not None}

        busy, queued = fresh(self._signal), fresh(QUEUE)
        # without direct ingress Ray counts at its handles, and replicas may report none
        counted = fresh(RUNNING) | fresh(IN_FLIGHT)
        reported = RUNNING in raw or IN_FLIGHT in raw
        requests = sum(counted.values()) + ctx.total_queued_requests if reported else ctx.total_num_requests
        return Seen(
            now=now,
            target=ctx.target_num_replicas,
            running=ctx.current_num_replicas,
            silent=ctx.current_num_replicas - len(busy),
            requests=requests,
            work=sum(self.work(share, queued.get(each, 0.0)) for each, share in busy.items()),
            least=ctx.capacity_adjusted_min_replicas,
            most=ctx.capacity_adjusted_max_replicas,
        )

    def decide(self, seen: Seen, state: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Replicas to ask for, and the state for the next decision."""
        begins = state.get("decided") != seen.target  # nothing is known yet, or another hand set the target
        past = [(seen.now, seen.target)]
        wanted, enough = self.bounds(seen)
        ups = _window(past if begins else state["ups"], seen.now, wanted, self._up_s, min)
        downs = _window(past if begins else state["downs"], seen.now, enough, self._down_s, max)
        decided = min(max(seen.target, ups[0][1]), downs[0][1])
        if seen.target > 1:
            decided = max(decided, 1)  # Ray goes to zero from one alone
        decided = min(max(decided, seen.least), seen.most)
        return decided, {"decided": decided, "ups": ups, "downs": downs}

    def bounds(self, seen: Seen) -> tuple[int, int]:
        """(fewer are too few, more are too many), regardless of the delays and of what is allowed.

        In between there is nothing to do. A replica that is silent counts as idle when more are asked for, and as one
        that has just enough to do when fewer are. While one starts there is no going to zero, which would end the start
        that a call may be waiting for.
        """
        needs = max(seen.requests / self._target_requests, seen.work / self._target_busy)
        growth = max(FIRST, _up(self._growth * seen.running), seen.target)
        enough = _up(needs / (1 - self._margin)) + seen.silent
        return min(_up(needs), growth), max(enough, 1) if seen.running < seen.target else enough

    def work(self, busy: float, queued: float) -> float:
        """Of one replica, by `Seen.work`. A saturated device shows 1 whatever waits, so what waits is added."""
        return (busy if busy >= IDLE else 0.0) + max(0.0, queued / self._queue_tokens - 1)


def _window(
    past: Sequence[tuple[float, int]], now: float, value: int, seconds: float, best: Callable[[int, int], int]
) -> list[tuple[float, int]]:
    """The values of the last seconds that may yet be their least or greatest; the first one is."""
    kept = [(then, old) for then, old in past if now - then < seconds and old != value and best(old, value) == old]
    return [*kept, (now, value)]


def _mean(series: Sequence[Point], since: float) -> float | None:
    """None where the newest sample is from before, or where there is no number in it."""
    if not series or series[-1].timestamp < since:
        return None
    values = [point.value for point in series if math.isfinite(point.value)]
    return max(0.0, sum(values) / len(values)) if values else None


def _up(replicas: float) -> int:
    return math.ceil(replicas - FUZZ)


def _require(holds: bool, rule: str, value: float) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {value}")
