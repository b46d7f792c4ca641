"""Simulates the registry's store under a fleet: requests a second, and the time until all replicas serve a publish.

A store answers a fixed number of requests a second; the others wait. Replicas poll at different times.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """The store and how it is used."""

    poll_s: float = 0.2
    beat_s: float = 10.0
    """Seconds between two announcements of a replica."""
    request_s: float = 0.02
    """Seconds of one request, if none waits."""
    requests_per_s: float = 5500.0
    """Most requests a second that the store answers."""
    fetches: int = 2
    """Requests of a replica to download a version: manifest, side network."""
    load_s: float = 0.29
    """Seconds from the downloaded files to the first answer."""


@dataclass(frozen=True, slots=True)
class Following:
    """How fast a fleet follows the registry, and the load on the store."""

    requests_per_s: float
    """While nothing is published."""
    store_share: float
    """That load, as a share of what the store can answer."""
    first_s: float
    median_s: float
    all_s: float
    """Seconds from the commit until the last replica serves it; `first_s` and `median_s` likewise."""


def follow(replicas: int, config: StoreConfig, rng: np.random.Generator) -> Following:
    """Simulate one publish.

    Every replica waits for its next poll. Then its downloads queue at the store, which also answers all polls.
    """
    steady = replicas * (1 / config.poll_s + 1 / config.beat_s)
    share = steady / config.requests_per_s
    if share >= 1:
        return Following(steady, share, float("inf"), float("inf"), float("inf"))
    gap = 1 / (config.requests_per_s - steady)  # capacity that polls leave
    times = np.sort(rng.random(replicas) * config.poll_s) + config.request_s
    for _ in range(config.fetches):
        times = np.sort(_queue(times, gap)) + config.request_s
    done = times + config.load_s
    return Following(steady, share, float(done[0]), float(np.median(done)), float(done[-1]))


def _queue(times: np.ndarray, gap: float) -> np.ndarray:
    """Return when each request leaves a queue that serves one every `gap` seconds."""
    turns = np.arange(len(times)) * gap
    return np.maximum.accumulate(times - turns) + turns + gap
