"""The registry's store under a fleet: requests a second, and how long a publish takes to be served by all.

A store answers so many requests a second and no more; what is beyond waits. Every replica polls in its own rhythm.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """The store and how it is used."""

    poll_s: float = 0.2
    beat_s: float = 10.0
    """How often a replica tells that it is there."""
    request_s: float = 0.02
    """Of one request, when nothing waits."""
    requests_per_s: float = 5500.0
    """The most that the store answers."""
    fetches: int = 2
    """Requests of a replica for a version, after the poll that found it: manifest, side network."""
    load_s: float = 0.29
    """From the files to the answer."""


@dataclass(frozen=True, slots=True)
class Following:
    """How a fleet follows."""

    requests_per_s: float
    """With nothing published."""
    store_share: float
    """Of what the store can answer."""
    first_s: float
    median_s: float
    all_s: float
    """From the commit to the last replica."""


def follow(replicas: int, config: StoreConfig, rng: np.random.Generator) -> Following:
    """One publish to so many replicas.

    Each waits for its next poll; then its fetches queue at the store with everybody's, beside the polls of all.
    """
    steady = replicas * (1 / config.poll_s + 1 / config.beat_s)
    share = steady / config.requests_per_s
    if share >= 1:
        return Following(steady, share, float("inf"), float("inf"), float("inf"))
    gap = 1 / (config.requests_per_s - steady)  # what polls leave
    found = np.sort(rng.random(replicas) * config.poll_s) + config.request_s
    times = found
    for _ in range(config.fetches):
        times = np.sort(_queue(times, gap)) + config.request_s
    done = times + config.load_s
    return Following(steady, share, float(done[0]), float(np.median(done)), float(done[-1]))


def _queue(times: np.ndarray, gap: float) -> np.ndarray:
    """When each leaves a queue that lets one through every `gap` seconds."""
    turns = np.arange(len(times)) * gap
    return np.maximum.accumulate(times - turns) + turns + gap
