"""What a server's process holds over time, and which generation of the registry it says that it serves."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from statistics import median

import psutil

from benchmarks.served import Served, counted
from serving.client import Client, SidecastError

MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """A server's process at one moment."""

    at: float
    """time.monotonic() seconds."""
    changes: int
    """Of the registry when the look began."""
    memory_mb: float
    threads: int
    files: int
    series: int
    """Of its metrics."""
    residents: int
    resident_mb: float
    evictions: int
    misses: int
    """Of the activation cache, since the start."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The server said that it serves a generation."""

    at: float
    served: int


@dataclass
class Watch:
    """What was seen of a server."""

    vitals: list[Vitals] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)

    def served(self, generation: int) -> float | None:
        """When it was first seen to serve that generation, or a later one."""
        return next((each.at for each in self.sightings if each.served >= generation), None)


def look(served: Served, changes: int) -> Vitals:
    """Read the server's metrics and its process's memory and CPU time."""
    counts, process = counted(served.metrics_url), psutil.Process(served.pid)
    with process.oneshot():
        return Vitals(
            at=time.monotonic(),
            changes=changes,
            memory_mb=process.memory_info().rss / MB,
            threads=process.num_threads(),
            files=process.num_fds(),
            series=len(counts),
            residents=int(counts["sidecast_resident_side_networks"]),
            resident_mb=counts["sidecast_resident_bytes"] / MB,
            evictions=int(sum(n for name, n in counts.items() if name.startswith("sidecast_cache_evictions_total"))),
            misses=int(counts["sidecast_cache_misses_total"]),
        )


@contextmanager
def watching(served: Served, changes: Callable[[], int], every_s: float = 1.0) -> Iterator[Watch]:
    """Look at the server every so often, and at once when its generation changes.

    Raises:
        whatever kept it from being looked at, after the block.
    """
    seen, over = Watch(), threading.Event()

    def sample() -> None:
        while not over.wait(every_s):
            seen.vitals.append(look(served, changes()))

    def follow() -> None:
        try:
            for event in client.watch():
                seen.sightings.append(Sighting(time.monotonic(), event.served))
        except SidecastError:
            if not over.is_set():
                raise

    with ThreadPoolExecutor(2) as threads:
        with Client(served.address, timeout=None) as client:
            watchers = [threads.submit(each) for each in (sample, follow)]
            try:
                yield seen
            finally:
                over.set()
        for each in watchers:
            each.result()  # the client's end has ended its stream


def growth(first: Sequence[Vitals], last: Sequence[Vitals]) -> dict[str, float]:
    """By how much memory, threads, files and series have grown: the median of the last samples over that of the first.

    `memory_mb` is besides the weights of the resident side networks, whose number goes up and down.
    """

    def grown(figure: Callable[[Vitals], float]) -> float:
        return median(map(figure, last)) - median(map(figure, first))

    others = {name: grown(attrgetter(name)) for name in ("threads", "files", "series")}
    return {"memory_mb": grown(lambda each: each.memory_mb - each.resident_mb), **others}
