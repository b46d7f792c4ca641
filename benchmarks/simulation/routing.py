"""Chooses the replica of a request. A proxy knows only the requests in flight that it sent itself."""

from bisect import bisect_left
from collections import OrderedDict
from hashlib import blake2b
from math import ceil
from typing import Protocol

import numpy as np

VIRTUAL = 64
"""Points of a replica on the hash ring."""


class Router(Protocol):
    """Picks replicas and counts their requests in flight. `pick` is never called without a replica."""

    def add(self, replica: int) -> None:
        """Send requests to this replica too."""

    def remove(self, replica: int) -> None:
        """Send no more requests to this replica."""

    def pick(self, key: int) -> int:
        """Return a replica for a request with this input; it counts as in flight there."""
        ...

    def done(self, replica: int) -> None:
        """Count one request fewer in flight."""


class LeastConnections:
    """HAProxy's `leastconn`: the fewest in flight, and of equals the one that was picked longest ago."""

    def __init__(self) -> None:
        self._load: dict[int, int] = {}
        self._by_load: dict[int, OrderedDict[int, None]] = {}
        self._least = 0

    def add(self, replica: int) -> None:
        """Send requests to this replica too."""
        self._put(replica, 0)

    def remove(self, replica: int) -> None:
        """Send no more requests to this replica."""
        if (load := self._load.pop(replica, None)) is not None:
            del self._by_load[load][replica]

    def pick(self, key: int) -> int:
        """Return a replica for a request; it counts as in flight there."""
        while not self._by_load.get(self._least):
            self._least += 1
        replica = next(iter(self._by_load[self._least]))
        self._move(replica, 1)
        return replica

    def done(self, replica: int) -> None:
        """Count one request fewer in flight."""
        if replica in self._load:
            self._move(replica, -1)

    def _move(self, replica: int, by: int) -> None:
        load = self._load[replica]
        del self._by_load[load][replica]
        self._put(replica, load + by)

    def _put(self, replica: int, load: int) -> None:
        self._load[replica] = load
        self._by_load.setdefault(load, OrderedDict())[replica] = None
        self._least = min(self._least, load)


class Random:
    """A replica at random."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._replicas = rng, list[int]()

    def add(self, replica: int) -> None:
        """Send requests to this replica too."""
        self._replicas.append(replica)

    def remove(self, replica: int) -> None:
        """Send no more requests to this replica."""
        self._replicas.remove(replica)

    def pick(self, key: int) -> int:
        """Return a replica for a request; it counts as in flight there."""
        return self._replicas[int(self._rng.random() * len(self._replicas))]

    def done(self, replica: int) -> None:
        """Count one request fewer in flight."""
        return


class BoundedHash:
    """Consistent hashing with bounded loads.

    Equal inputs go to one replica, or to the next one on the ring if it has `bound` times its share.
    """

    def __init__(self, bound: float = 1.25) -> None:
        self._bound, self._total = bound, 0
        self._ring: list[tuple[int, int]] = []
        self._load: dict[int, int] = {}

    def add(self, replica: int) -> None:
        """Send requests to this replica too."""
        self._load[replica] = 0
        self._ring = sorted(self._ring + [(_hash(replica, point), replica) for point in range(1, VIRTUAL + 1)])

    def remove(self, replica: int) -> None:
        """Send no more requests to this replica."""
        self._total -= self._load.pop(replica)
        self._ring = [point for point in self._ring if point[1] != replica]

    def pick(self, key: int) -> int:
        """Return a replica for a request; it counts as in flight there."""
        most, at = ceil(self._bound * (self._total + 1) / len(self._load)), bisect_left(self._ring, (_hash(key, 0), -1))
        while True:
            replica = self._ring[at % len(self._ring)][1]
            if self._load[replica] < most:
                self._load[replica] += 1
                self._total += 1
                return replica
            at += 1

    def done(self, replica: int) -> None:
        """Count one request fewer in flight."""
        if replica in self._load:
            self._load[replica] -= 1
            self._total -= 1


ROUTERS = ("leastconn", "random", "bounded-hash")


def make(name: str, rng: np.random.Generator) -> Router:
    """Make the router of that name, one of `ROUTERS`."""
    return {"leastconn": LeastConnections, "random": lambda: Random(rng), "bounded-hash": BoundedHash}[name]()


def _hash(number: int, point: int) -> int:
    return int.from_bytes(blake2b(b"%d %d" % (number, point), digest_size=8).digest())
