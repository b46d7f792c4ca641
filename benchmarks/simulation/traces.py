"""When requests come, and for what: rates over time, arrivals at random by them, tasks and inputs by Zipf's law."""

from dataclasses import dataclass

import numpy as np

from benchmarks.harness import BenchmarkError

KINDS = ("poisson", "diurnal", "bursts")
DAY_S = 86_400.0
NIGHT = 0.2
"""The least rate of a day, by its greatest."""
BURST = 4.0
"""The rate within a burst, by that between bursts."""
BURST_S, CALM_S = 120.0, 1080.0
"""How long a burst and a calm last in the mean, exponentially distributed (a Markov-modulated Poisson process)."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in the order they come; the arrays are of one length."""

    times: np.ndarray
    """Seconds."""
    inputs: np.ndarray
    """Equal numbers, equal inputs: these share kept activations, whatever their tasks."""


def rates(kind: str, seconds: float, peak: float, rng: np.random.Generator, step_s: float = 1.0) -> np.ndarray:
    """Requests a second in each step: steady at `peak`, a day that rises to it, or bursts up to it."""
    count = max(1, round(seconds / step_s))
    if kind == "poisson":
        return np.full(count, peak)
    if kind == "diurnal":
        phase = 2 * np.pi * np.arange(count) * step_s / DAY_S
        return peak * (NIGHT + (1 - NIGHT) * (1 - np.cos(phase)) / 2)
    if kind == "bursts":
        return np.where(_in_burst(count, step_s, rng), peak, peak / BURST)
    raise BenchmarkError(f"unknown trace {kind!r}; one of {', '.join(KINDS)}")


def _in_burst(count: int, step_s: float, rng: np.random.Generator) -> np.ndarray:
    mask, at, burst = np.zeros(count, dtype=bool), 0.0, False
    while at < count:
        end = at + rng.exponential(BURST_S if burst else CALM_S) / step_s
        mask[round(at) : round(end)] = burst
        at, burst = end, not burst
    return mask


def arrivals(
    rate: np.ndarray, rng: np.random.Generator, *, step_s: float = 1.0, inputs: int = 10_000, exponent: float = 1.0
) -> Arrivals:
    """A Poisson process of these rates; each request's input is one of so many."""
    counts = rng.poisson(rate * step_s)
    starts = np.repeat(np.arange(len(rate)) * step_s, counts)
    times = np.sort(starts + step_s * rng.random(len(starts)))
    return Arrivals(times, zipf(inputs, exponent, len(times), rng))


def zipf(count: int, exponent: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers below `count`; the k-th most frequent comes as often as 1 / k^exponent says. 0: all alike."""
    weights = np.cumsum(1.0 / np.arange(1, count + 1) ** exponent)
    return np.searchsorted(weights, weights[-1] * rng.random(size), side="right")
