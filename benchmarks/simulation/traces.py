"""Makes traces of requests: rates over time, random arrivals at these rates, and inputs by Zipf's law."""

from dataclasses import dataclass

import numpy as np

from benchmarks.harness.samples import BenchmarkError

KINDS = ("poisson", "diurnal", "bursts")
DAY_S = 86_400.0
NIGHT = 0.2
"""Lowest rate of a day, as a share of its highest."""
BURST = 4.0
"""Rate within a burst, as a multiple of that between bursts."""
BURST_S, CALM_S = 120.0, 1080.0
"""Mean length of a burst and of a calm, exponentially distributed (a Markov-modulated Poisson process)."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in the order they come; the arrays are of one length."""

    times: np.ndarray
    """Seconds."""
    inputs: np.ndarray
    """Equal numbers are equal inputs, which share cached activations even for different tasks."""


def rates(kind: str, seconds: float, peak: float, rng: np.random.Generator, step_s: float = 1.0) -> np.ndarray:
    """Return requests a second in each step: steady at `peak`, a day that rises to it, or bursts up to it."""
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
    """Draw a Poisson process of these rates; each request's input is one of `inputs`."""
    counts = rng.poisson(rate * step_s)
    starts = np.repeat(np.arange(len(rate)) * step_s, counts)
    times = np.sort(starts + step_s * rng.random(len(starts)))
    return Arrivals(times, zipf(inputs, exponent, len(times), rng))


def zipf(count: int, exponent: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw numbers below `count`; the k-th has the weight 1 / k^exponent. 0: all equally often."""
    weights = np.cumsum(1.0 / np.arange(1, count + 1) ** exponent)
    return np.searchsorted(weights, weights[-1] * rng.random(size), side="right")
