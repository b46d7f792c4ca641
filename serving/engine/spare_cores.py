"""Steps that leave to others the cores which they use: fewer threads of torch while other processes or loads work.

Torch's threads wait for each other in a busy loop, several hundred times in a pass. One that finds no core keeps all
others waiting, so two threads on one free core take up to ten times as long as one. What other processes use is known
on Linux only; elsewhere no core counts as used. Knows no rows.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import psutil
import torch

LOOK_S = 0.25
"""Shortest time between two looks at the cores, in seconds. A look takes a fifth of a millisecond."""

BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
"""What Linux counts as use of a core."""


class Usage(NamedTuple):
    """Processor time until now, in seconds, of the cores that this process may use."""

    everyone_s: float
    own_s: float
    cores: int
    at: float
    """When, by time.monotonic()."""


class Steps(Protocol):
    """What takes steps on the device thread, as `serving.scheduler` has it."""

    def step(self, rows: Sequence[Any], cancelled: Sequence[Any], deliver: Any) -> bool:
        """Take one step; whether another one is needed."""
        ...


class SpareCores:
    """Counts the cores that other processes leave to this one.

    Args:
        most: the answer is never higher. It is `most` until LOOK_S seconds have passed.
    """

    def __init__(
        self,
        most: int,
        look: Callable[[], Usage] = lambda: look_at_cores(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = self._spare = most
        self._look, self._clock = look, clock
        self._last = look()

    def count(self) -> int:
        """Cores, at least one: what was free since the last look, rounded."""
        if self._clock() - self._last.at >= LOOK_S:
            before, self._last = self._last, self._look()
            seconds = self._last.at - before.at
            others_s = (self._last.everyone_s - before.everyone_s) - (self._last.own_s - before.own_s)
            free = round(self._last.cores - max(others_s, 0.0) / seconds)
            self._spare = min(max(free, 1), self._most)
        return self._spare


class YieldingSteps:
    """Takes the steps of `worker` with as many threads of torch as there are spare cores.

    Use it on the device thread.

    Args:
        aside: how many cores other threads of this process use now.
    """

    def __init__(self, worker: Steps, spare: SpareCores, aside: Callable[[], int]) -> None:
        self._worker, self._spare, self._aside = worker, spare, aside

    def step(self, rows: Sequence[Any], cancelled: Sequence[Any], deliver: Any) -> bool:
        """One step of the worker."""
        threads = max(self._spare.count() - self._aside(), 1)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return self._worker.step(rows, cancelled, deliver)


def look_at_cores() -> Usage:
    """How much of this process's cores was used until now, by all processes and by this one."""
    own = os.times()
    if not hasattr(os, "sched_getaffinity"):
        return Usage(0.0, 0.0, os.cpu_count() or 1, time.monotonic())
    usable = os.sched_getaffinity(0)
    cores = [times._asdict() for core, times in enumerate(psutil.cpu_times(percpu=True)) if core in usable]
    busy_s = sum(times.get(kind, 0.0) for times in cores for kind in BUSY)
    return Usage(busy_s, own.user + own.system, len(usable), time.monotonic())
