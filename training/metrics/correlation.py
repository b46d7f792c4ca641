"""Correlations of values: Pearson's and Spearman's."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.errors import MetricError


def pearson_and_spearman(predictions: Sequence[Any], targets: Sequence[Any]) -> tuple[float, float]:
    """Both; 0 where a correlation is not defined: one row, or constant predictions or targets.

    Raises:
        MetricError: a value is not a finite number.
    """
    answered = _finite("predictions", predictions)
    right = _finite("targets", targets)
    return correlations(answered, right)


def correlations(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Both correlations of two (N,) arrays of finite numbers."""
    return _correlation(x, y), _correlation(_average_ranks(x), _average_ranks(y))


def _finite(what: str, values: Sequence[Any]) -> np.ndarray:
    for index, value in enumerate(values):
        if isinstance(value, str) or not math.isfinite(value):
            raise MetricError("pearson_spearman", f"{what}[{index}] is {value!r}, not a finite number")
    return np.asarray(values, dtype=np.float64)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of two (N,) arrays; 0 where one of them is constant."""
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    x = _unit(x)
    y = _unit(y)
    return float(np.clip(x @ y, -1.0, 1.0))


def _unit(values: np.ndarray) -> np.ndarray:
    """(N,) to (N,) of mean 0 and length 1. Dividing by the largest first keeps squares of huge values finite."""
    values = values / np.abs(values).max()
    centred = values - values.mean()
    length = np.linalg.norm(centred)
    return centred / length if length else centred


def _average_ranks(values: np.ndarray) -> np.ndarray:
    """(N,) to the (N,) ranks from 1; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
