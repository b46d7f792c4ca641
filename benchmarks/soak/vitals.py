"""Watches a server: memory, threads and files of its process over time, and the registry generation it serves."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from statistics import median

import psutil

from benchmarks.harness.served import Served, counted
from serving.client import Client, SidecastError

MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """A server's process at one moment."""

    at: float
    """time.monotonic() seconds."""
    changes: int
    """Changes of the registry so far."""
    memory_mb: float
    threads: int
    files: int
    series: int
    """Time series of its metrics."""
    residents: int
    resident_mb: float
    evictions: int
    misses: int
    """Misses of the activation cache since the start."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The server reported that it serves a generation."""

    at: float
    served: int


@dataclass
class Watch:
    """Everything observed of a server."""

    vitals: list[Vitals] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)

    def served(self, generation: int) -> float | None:
        """Return when it first reported that generation or a later one; None: not yet."""
        return next((sighting.at for sighting in self.sightings if sighting.served >= generation), None)


def look(served: Served, changes: int) -> Vitals:
    """Read the server's metrics and its process's memory and CPU time."""
    counts, process = counted(served.metrics_url, served.credentials), psutil.Process(served.pid)
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
    """Read the server's vitals every `every_s` seconds, and follow its generation.

    Raises:
        Exception: the error that ended the watching, after the block.
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
        with Client(served.address, timeout=None, **served.client()) as client:
            watchers = [threads.submit(watcher) for watcher in (sample, follow)]
            try:
                yield seen
            finally:
                over.set()
        for watcher in watchers:
            watcher.result()  # closing the client has ended its stream


def growth(first: Sequence[Vitals], last: Sequence[Vitals]) -> dict[str, float]:
    """Return the growth of memory, threads, files and series: the median of the last samples minus that of the first.

    `memory_mb` leaves out the weights of the resident side networks, whose number goes up and down.
    """

    def grown(figure: Callable[[Vitals], float]) -> float:
        return median(map(figure, last)) - median(map(figure, first))

    others = {name: grown(attrgetter(name)) for name in ("threads", "files", "series")}
    return {"memory_mb": grown(lambda vitals: vitals.memory_mb - vitals.resident_mb), **others}
