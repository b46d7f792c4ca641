"""Simulates a pool of replicas event by event, as callers see it. Every request is one row and is answered once.

Open arrivals come from a trace; callers of a closed loop send the next request as soon as they are answered. The number
of replicas is fixed, or follows the scaling policy: a new one answers after its cold start, a removed one takes no more
requests and finishes those it has. Requests that come while there is no replica wait for the first, as behind Ray's
fallback proxy.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from benchmarks.simulation import routing
from benchmarks.simulation.replica import Replica, Request, ServerConfig
from benchmarks.simulation.service import Service
from benchmarks.simulation.traces import Arrivals

Policy = Callable[[Any], tuple[int, dict[str, Any]]]
TICK_S = 1.0
"""Seconds between decisions. Ray decides every 0.1 s, on figures that change every 10 s."""
SAMPLE_S, PUSH_S, LOOK_BACK_S = 3.0, 10.0, 15.0
"""How often a replica samples and reports, and how long a sample counts: as the application configures Ray."""


class Sample(NamedTuple):
    """One value of a metric, and when it was measured."""

    timestamp: float
    value: float


@dataclass(slots=True, kw_only=True)
class Context:
    """The part of Ray's AutoscalingContext that the policy reads: samples of each replica, pushed every PUSH_S."""

    current_time: float
    target_num_replicas: int
    running_replicas: Sequence[int]
    raw_metrics: Mapping[str, Mapping[int, Sequence[Sample]]]
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    policy_state: dict[str, Any] = field(default_factory=dict)
    total_queued_requests: float = 0.0
    total_num_requests: float = 0.0

    @property
    def current_num_replicas(self) -> int:
        """Number of running replicas."""
        return len(self.running_replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """What is simulated."""

    service: Service
    server: ServerConfig = field(default_factory=ServerConfig)
    replicas: int = 1
    """Number of replicas at the start."""
    least: int = 1
    most: int = 1
    cold_start_s: float = 30.0
    routing: str = "leastconn"
    proxies: int = 1
    """Number of proxies. Each one knows only the requests that it sent itself."""


@dataclass(slots=True)
class Outcome:
    """Result of a simulation."""

    arrived: int = 0
    times: list[float] = field(default_factory=list)
    """When each answered request arrived."""
    waits: list[float] = field(default_factory=list)
    """Seconds until each of them was answered."""
    counts: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, replicas that take traffic), at each change."""
    replica_s: float = 0.0
    """Seconds of replicas that are paid for: from the request for one to its end."""
    hits: int = 0
    rows: int = 0
    batches: int = 0
    ended: float = 0.0
    replicas: int = 0
    """Number of replicas at the end."""

    def quantile(self, share: float, since: float = 0.0) -> float:
        """Return a quantile of the waits of requests that arrived at `since` or later; nan if there were none."""
        waits = np.asarray(self.waits)[np.asarray(self.times) >= since]
        return float(np.quantile(waits, share)) if len(waits) else float("nan")


def simulate(
    config: PoolConfig,
    arrivals: Arrivals | None = None,
    *,
    callers: int = 0,
    seconds: float = 0.0,
    policy: Policy | None = None,
    seed: int = 0,
) -> Outcome:
    """Run the arrivals of a trace through the pool, and `callers` for `seconds`, until all are answered."""
    return _Run(config, policy, np.random.default_rng(seed)).run(arrivals, callers, seconds)


class _Run:
    def __init__(self, config: PoolConfig, policy: Policy | None, rng: np.random.Generator) -> None:
        self._config, self._policy, self._rng = config, policy, rng
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order, self._numbers = 0, 0
        self._routers = [routing.make(config.routing, rng) for _ in range(config.proxies)]
        self._replicas: dict[int, Replica] = {}
        self._leaving: dict[int, Replica] = {}
        self._asked: dict[int, float] = {}
        """When each replica that starts or runs was requested."""
        self._starting: list[int] = []
        self._held: deque[Request] = deque()
        self._samples: dict[int, list[tuple[float, dict[str, float]]]] = {}
        self._pushed: dict[str, dict[int, list[Sample]]] = {}
        self._state: dict[str, Any] = {}
        self._target, self._until, self._open = config.replicas, 0.0, 0
        self._outcome = Outcome()

    def run(self, arrivals: Arrivals | None, callers: int, seconds: float) -> Outcome:
        times: Sequence[float] = arrivals.times.tolist() if arrivals else []
        inputs: Sequence[int] = arrivals.inputs.tolist() if arrivals else []
        self._until = max(seconds, times[-1] if times else 0.0)
        for _ in range(self._config.replicas):
            self._ask(0.0)
            self._ready(0.0, self._starting[0])
        for start in self._rng.random(callers):  # in the first second, not all at once
            self._at(float(start), self._again)
        if self._policy:
            self._at(SAMPLE_S, self._sample)
            self._at(PUSH_S, self._push)
            self._at(TICK_S, self._decide)
        for time, key in zip(times, inputs, strict=True):
            self._events_before(time)
            self._arrive(time, key)
        self._events_before(float("inf"))
        return self._close()

    def _close(self) -> Outcome:
        out = self._outcome
        for asked in self._asked.values():
            out.replica_s += max(0.0, out.ended - asked)
        for replica in self._replicas.values():
            out.hits, out.rows = out.hits + replica.hits, out.rows + replica.rows
        out.replicas = len(self._replicas)
        return out

    def _at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._events, (time, self._order, call, arguments))

    def _events_before(self, time: float) -> None:
        while self._events and self._events[0][0] <= time:
            now, _, call, arguments = heapq.heappop(self._events)
            call(now, *arguments)

    # --- requests

    def _again(self, now: float) -> None:
        if now < self._until:
            self._arrive(now, int(self._rng.integers(1 << 62)), is_caller=True)

    def _arrive(self, now: float, key: int, is_caller: bool = False) -> None:
        self._outcome.arrived += 1
        self._open += 1
        router = int(self._rng.integers(len(self._routers))) if len(self._routers) > 1 else 0
        request = Request(now, key, -1 - router if is_caller else router)
        if self._replicas:
            self._send(now, request)
        else:
            self._held.append(request)

    def _send(self, now: float, request: Request) -> None:
        router = request.router if request.router >= 0 else -1 - request.router
        replica = self._replicas[self._routers[router].pick(request.input)]
        replica.queue.append(request)
        if replica.batch:
            return
        if replica.is_full or self._config.server.wait_s <= 0:
            self._begin(now, replica)
        elif not replica.waits:
            replica.waits = True
            self._at(now + self._config.server.wait_s, self._waited, replica)

    def _waited(self, now: float, replica: Replica) -> None:
        if replica.waits and not replica.batch:
            self._begin(now, replica)

    def _begin(self, now: float, replica: Replica) -> None:
        self._outcome.batches += 1
        self._at(replica.begin(now), self._end, replica)

    def _end(self, now: float, replica: Replica) -> None:
        replica.end(now, lambda request: self._answer(now, replica, request))
        if replica.queue:
            self._begin(now, replica)
        elif replica.number in self._leaving:
            self._gone(now, replica)

    def _answer(self, now: float, replica: Replica, request: Request) -> None:
        out, is_caller = self._outcome, request.router < 0
        now += self._config.service.overhead_s * (0.5 + self._rng.random())  # around its mean
        out.times.append(request.arrived)
        out.waits.append(now - request.arrived)
        out.ended = max(out.ended, now)
        self._open -= 1
        self._routers[-1 - request.router if is_caller else request.router].done(replica.number)
        if is_caller:
            self._at(now, self._again)

    # --- replicas

    def _ask(self, now: float) -> None:
        self._asked[self._numbers] = now
        self._starting.append(self._numbers)
        self._numbers += 1

    def _ready(self, now: float, number: int) -> None:
        if number not in self._starting:  # let go while it started
            return
        self._starting.remove(number)
        self._replicas[number] = Replica(number, self._config.service, self._config.server)
        for router in self._routers:
            router.add(number)
        self._outcome.counts.append((now, len(self._replicas)))
        while self._held:
            self._send(now, self._held.popleft())

    def _let_go(self, now: float) -> None:
        """Remove one replica: one that starts, or the one with the fewest requests."""
        if self._starting:
            self._paid(now, self._starting.pop())
            return
        replica = min(self._replicas.values(), key=lambda candidate: (candidate.ongoing, -candidate.number))
        del self._replicas[replica.number]
        for router in self._routers:
            router.remove(replica.number)
        self._samples.pop(replica.number, None)
        self._outcome.counts.append((now, len(self._replicas)))
        self._leaving[replica.number] = replica
        if not replica.ongoing:
            self._gone(now, replica)

    def _gone(self, now: float, replica: Replica) -> None:
        del self._leaving[replica.number]
        self._outcome.hits, self._outcome.rows = self._outcome.hits + replica.hits, self._outcome.rows + replica.rows
        self._paid(now, replica.number)

    def _paid(self, now: float, number: int) -> None:
        self._outcome.replica_s += now - self._asked.pop(number)

    # --- scaling

    def _sample(self, now: float) -> None:
        most = self._config.service.capacity(self._config.server.batch_rows)
        for number, replica in self._replicas.items():
            busy_s, rows = replica.take_busy_s(now)
            figures = {
                "busy": min(1.0, busy_s / SAMPLE_S),
                "load": rows / most / SAMPLE_S,
                "running_requests": float(replica.ongoing),
                "queued_tokens": float(replica.queued_tokens),
            }
            kept = [(then, old) for then, old in self._samples.get(number, ()) if then > now - LOOK_BACK_S]
            self._samples[number] = [*kept, (now, figures)]
        self._next(now, SAMPLE_S, self._sample)

    def _push(self, now: float) -> None:
        self._pushed = {}
        for number, samples in self._samples.items():
            for name in samples[0][1]:
                points = [Sample(then, figures[name]) for then, figures in samples]
                self._pushed.setdefault(name, {})[number] = points
        self._next(now, PUSH_S, self._push)

    def _decide(self, now: float) -> None:
        assert self._policy
        context = Context(
            current_time=now,
            target_num_replicas=self._target,
            running_replicas=list(self._replicas),
            raw_metrics=self._pushed,
            capacity_adjusted_min_replicas=self._config.least,
            capacity_adjusted_max_replicas=self._config.most,
            policy_state=self._state,
            total_queued_requests=len(self._held),
            total_num_requests=len(self._held),
        )
        if self._held and not self._replicas:  # Ray asks for one at once and does not ask the policy
            self._target = max(1, self._target)
        else:
            self._target, self._state = self._policy(context)
        self._follow(now)
        self._next(now, TICK_S, self._decide)

    def _follow(self, now: float) -> None:
        while len(self._replicas) + len(self._starting) < self._target:
            self._ask(now)
            self._at(now + self._config.cold_start_s, self._ready, self._starting[-1])
        while len(self._replicas) + len(self._starting) > self._target:
            self._let_go(now)

    def _next(self, now: float, seconds: float, call: Callable[[float], None]) -> None:
        """Schedule the next call, as long as there are or will be requests."""
        if now < self._until or self._open:
            self._at(now + seconds, call)
