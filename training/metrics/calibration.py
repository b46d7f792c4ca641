"""How well a classifier's probabilities match how often it is right, and the temperature that improves the match.

Guo et al., 2017 (arXiv:1706.04599): the logits are divided by one number, fitted on held-out rows. Labels stay the
same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15
"""Of the calibration error, as in the paper."""
LOWEST, HIGHEST = 0.5, 10.0
"""Temperatures that are tried. A low one enlarges differences of logits: below 0.5, those between float32 and bfloat16
could exceed the tolerance of golden examples."""
STEPS = 30
"""Of the search: each leaves 62 % of the range, in logarithms."""
LEAST_PROBABILITY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A temperature, and what it does on the rows that it was fitted on."""

    temperature: float
    rows: int
    nll: float
    """Mean negative log-likelihood of the targets, in nats, with the temperature."""
    nll_before: float
    """Without it."""
    ece: float
    """Expected calibration error with the temperature."""
    ece_before: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Answers whose probabilities are close to each other."""

    number: int
    """From 0: it holds probabilities from number / BINS on."""
    rows: int
    confidence: float
    """Mean probability of the answers."""
    right: float
    """Share of them that is right."""


def reliability(confidences: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray) -> list[Bin]:
    """The bins of the calibration error that have answers, in order.

    Args:
        confidences, right: as `calibration_error` takes them.
    """
    confidence = np.asarray(confidences, np.float64)
    bins = _bins(confidence)
    rows = np.bincount(bins, minlength=BINS)
    sums = np.bincount(bins, weights=confidence, minlength=BINS)
    hits = np.bincount(bins, weights=np.asarray(right, np.float64), minlength=BINS)
    return [
        Bin(number=number, rows=count, confidence=sums[number] / count, right=hits[number] / count)
        for number, count in enumerate(rows.tolist())
        if count
    ]


def calibration_error(confidences: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray) -> float:
    """Expected calibration error (ECE), 0 to 1.

    The mean, over 15 bins of equal width weighed by their rows, of how far the mean probability of the answers is from
    the share of them that is right.

    Args:
        confidences: (N,) the probability of each answer.
        right: (N,) whether it is the target.
    """
    confidence = np.asarray(confidences, np.float64)
    gaps = np.bincount(_bins(confidence), weights=confidence - np.asarray(right, np.float64), minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _bins(confidence: np.ndarray) -> np.ndarray:
    """(N,) the number of each probability's bin."""
    return np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)


def fit_temperature(probabilities: Sequence[Sequence[float]], targets: Sequence[int]) -> Fitted | None:
    """The temperature with the lowest negative log-likelihood; None where none lowers it on rows that it has not seen.

    Fitted on every second row, it is tried on the others, and the other way round; then it is fitted on all. The search
    counts one more row whose target is unknown: else rows that are all answered right would make the probabilities 0
    and 1.

    Args:
        probabilities: (N, K) of the labels, two or more.
        targets: (N,) indices of labels.
    """
    logs = np.log(np.maximum(np.asarray(probabilities, np.float64), LEAST_PROBABILITY))
    indices = np.asarray(targets, np.int64)
    if len(indices) < 2:
        return None
    halves = [(slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))]
    unseen = sum(_nll(logs[other], indices[other], _fit(logs[half], indices[half])).sum() for half, other in halves)
    before = _nll(logs, indices, 1.0)
    temperature = _fit(logs, indices)
    after = _nll(logs, indices, temperature)
    if not (unseen < before.sum() and after.sum() < before.sum()):
        return None
    return Fitted(
        temperature=temperature,
        rows=len(indices),
        nll=float(after.mean()),
        nll_before=float(before.mean()),
        ece=_error(logs, indices, temperature),
        ece_before=_error(logs, indices, 1.0),
    )


def _fit(logs: np.ndarray, targets: np.ndarray) -> float:
    """Golden-section search: the likelihood has one maximum, since it is concave in 1 / temperature."""
    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(STEPS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _objective(logs, targets, math.exp(left)) <= _objective(logs, targets, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def _objective(logs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    tempered = _tempered(logs, temperature)
    unknown = tempered.mean()  # the mean row, with each label equally likely
    return float(-tempered[np.arange(len(targets)), targets].sum() - unknown)


def _nll(logs: np.ndarray, targets: np.ndarray, temperature: float) -> np.ndarray:
    """(N,) of each row."""
    return -_tempered(logs, temperature)[np.arange(len(targets)), targets]


def _error(logs: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    right = logs.argmax(-1) == targets
    return calibration_error(np.exp(_tempered(logs, temperature).max(-1)), right)


def _tempered(logs: np.ndarray, temperature: float) -> np.ndarray:
    """(N, K) log-probabilities, as the softmax of the logits divided by the temperature."""
    scaled = logs / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
