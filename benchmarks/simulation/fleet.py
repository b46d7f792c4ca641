"""Simulates a fleet over a day as a fluid, in steps of seconds: how the scaling policy follows a trace, and its cost.

There are no single requests: a replica gets its share of the rate, its batches are as large as that rate makes them,
and rows beyond its capacity wait. So a day of a thousand replicas takes seconds. Random variation within a step is left
out; `pool` simulates it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.simulation.replica import ServerConfig
from benchmarks.simulation.service import Service
from serving.cluster.autoscaling import FleetLoad, LoadPolicy

POINTS = 200
"""Points of the table of a replica's figures by rate."""


@dataclass(frozen=True, slots=True)
class Steady:
    """A replica at a steady rate below its capacity, by the rate."""

    capacity: float
    """Rows a second."""
    rates: np.ndarray
    batch: np.ndarray
    turn_s: np.ndarray
    busy: np.ndarray

    @classmethod
    def of(cls, service: Service, config: ServerConfig) -> "Steady":
        """Build the table. A batch holds the rows that came during the batch before it, at least one."""
        capacity, most = service.capacity(config.batch_rows), config.batch_rows
        rates = np.linspace(0.0, capacity, POINTS)
        batch = np.array([_batch(service, rate, most) for rate in rates])
        turn = np.array([service.seconds(rows) for rows in batch])
        return cls(capacity, rates, batch, turn, np.minimum(1.0, rates * turn / batch))

    def at(self, rate: float) -> tuple[float, float, float]:
        """Return (rows of a batch, its seconds, busy share) at this rate."""
        return tuple(float(np.interp(rate, self.rates, column)) for column in (self.batch, self.turn_s, self.busy))  # type: ignore[return-value]


def _batch(service: Service, rate: float, most: int) -> float:
    rows, before = 1.0, 0.0
    while rows - before > 1e-3:
        rows, before = min(most, max(1.0, rate * service.seconds(rows))), rows
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """What is simulated."""

    service: Service
    server: ServerConfig = field(default_factory=ServerConfig)
    least: int = 1
    most: int = 10
    cold_start_s: float = 30.0
    step_s: float = 10.0
    """Also the time between decisions of the policy: on Ray, its figures change as rarely."""


@dataclass(frozen=True, slots=True)
class Course:
    """What happened, a value for each step."""

    step_s: float
    running: np.ndarray
    paid: np.ndarray
    """Replicas that run or start."""
    rows: np.ndarray
    """Rows that arrived."""
    answered: np.ndarray
    wait_s: np.ndarray
    """Mean seconds until a row that arrives in this step is answered."""

    @property
    def replica_hours(self) -> float:
        """Hours of replicas that are paid for."""
        return float(self.paid.sum()) * self.step_s / 3600

    def quantile(self, share: float) -> float:
        """Return a quantile of the rows' waits, in seconds."""
        order = np.argsort(self.wait_s)
        whole = np.cumsum(self.rows[order])
        return float(self.wait_s[order][np.searchsorted(whole, share * whole[-1])])

    @property
    def changes(self) -> int:
        """Steps in which the number of replicas that run changed its direction, up to down or down to up."""
        moves = np.sign(np.diff(self.running))
        moves = moves[moves != 0]
        return int((moves[1:] != moves[:-1]).sum())


class Fleet:
    """Follows the policy, or stays at `config.most` without one."""

    def __init__(
        self, config: FleetConfig, policy: LoadPolicy | None, rng: np.random.Generator, signal: str = "busy"
    ) -> None:
        self._config, self._policy, self._rng, self._signal = config, policy, rng, signal
        self._steady = Steady.of(config.service, config.server)
        self._state: dict[str, Any] = {}
        self._backlog = 0.0

    def run(self, rate: np.ndarray) -> Course:
        """Simulate; `rate` is rows a second in each step."""
        config = self._config
        target = config.most if self._policy is None else max(config.least, min(config.most, self._first(rate[0])))
        running, starting, columns = target, list[float](), []
        for step, mean in enumerate(rate):
            now = step * config.step_s
            running += sum(ready <= now for ready in starting)
            starting = [ready for ready in starting if ready > now]
            rows = float(self._rng.poisson(mean * config.step_s))
            answered, wait_s, figures = self._serve(rows, running)
            columns.append((running, running + len(starting), rows, answered, wait_s))
            if self._policy is not None:
                target = self._decide(now, target, running, figures)
            starting += [now + config.cold_start_s] * max(0, target - running - len(starting))
            surplus = max(0, running + len(starting) - target)
            starting = starting[: max(0, len(starting) - surplus)]
            running = min(running, target)
        return Course(config.step_s, *(np.array(column) for column in zip(*columns, strict=True)))

    def _first(self, rate: float) -> int:
        """Return enough replicas for the first step: the fleet is running when a trace begins."""
        return int(np.ceil(rate / self._steady.capacity / 0.8))

    def _serve(self, rows: float, running: int) -> tuple[float, float, dict[str, float]]:
        """Simulate one step; return the answered rows, the wait of a new row, and the figures of a replica."""
        step_s, waiting = self._config.step_s, self._backlog + rows
        able = running * self._steady.capacity * step_s
        answered = min(waiting, able)
        self._backlog = waiting - answered
        if not running:
            return 0.0, self._config.cold_start_s, {}
        rate = answered / step_s / running
        batch, turn_s, busy = self._steady.at(rate)
        ahead_s = (self._backlog / running) / self._steady.capacity
        wait_s = turn_s * (1 + busy / 2) + ahead_s
        queued = self._backlog / running + busy * rate * turn_s / 2
        figures = {"busy": busy, "load": rate / self._steady.capacity, "requests": queued + busy * batch}
        return answered, wait_s, figures | {"queued_tokens": queued * self._config.server.row_tokens}

    def _decide(self, now: float, target: int, running: int, figures: dict[str, float]) -> int:
        assert self._policy
        if not running:
            return max(1, target) if self._backlog else target
        load = FleetLoad(  # as the policy would read it from replicas that are all alike
            now=now,
            target=target,
            running=running,
            requests=running * figures["requests"],
            work=running * self._policy.work(figures[self._signal], figures["queued_tokens"]),
            least=self._config.least,
            most=self._config.most,
        )
        target, self._state = self._policy.decide(load, self._state)
        return target
