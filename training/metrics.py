"""Scores of predictions: accuracy, Matthews correlation, F1, Pearson and Spearman correlation, exact match, ranks.

Fractions are 0 to 1 and correlations -1 to 1, never percent. A metric's headline number has the metric's own name, so
that "the best epoch" is `max(..., key=lambda scores: scores[metric])`. Knows no task files, models or tensors.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from training.errors import MetricError


def score(
    metric: str, predictions: Sequence[str | float], targets: Sequence[str | float], *, labels: Sequence[str] = ()
) -> dict[str, float]:
    """Score predictions against targets of the same order.

    Args:
        metric: one of METRICS.
        predictions: label texts, texts or values. A text that is no label is an invalid output: it counts as wrong.
            For recall_at_1 and mrr: the rank that each target came out at, from 1.
        targets: what they should be.
        labels: the task's labels in the spec's order. `accuracy_f1` needs its two, the second being the positive one.
    Returns:
        The headline number under the metric's own name, then its parts if it has any.
    Raises:
        MetricError: unknown metric, nothing to score, unequal lengths, a value that is not a finite number.
    """
    if metric not in METRICS:
        raise MetricError(metric, f"unknown; give one of {', '.join(METRICS)}")
    if len(predictions) != len(targets):
        raise MetricError(metric, f"{len(predictions)} predictions for {len(targets)} targets")
    if not targets:
        raise MetricError(metric, "nothing to score: 0 predictions")
    return METRICS[metric](predictions, targets, labels)


def _accuracy(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    return {"accuracy": _share_equal(predictions, targets)}


def _matthews(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """An invalid output is one more class, which is never right. 0 when predictions or targets are all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found", category=UserWarning)
        return {"matthews": float(matthews_corrcoef(list(targets), list(predictions)))}


def _accuracy_f1(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """An invalid output counts as the opposite of its target, as in T5's own evaluation."""
    if len(labels) != 2:
        raise MetricError(
            "accuracy_f1", f"needs the task's two labels, the second is the positive one; got {len(labels)}"
        )
    wanted = [target == labels[1] for target in targets]
    found = [
        prediction == labels[1] if prediction in labels else not want
        for prediction, want in zip(predictions, wanted, strict=True)
    ]
    accuracy, f1 = _share_equal(found, wanted), float(f1_score(wanted, found, zero_division=0.0))  # pyright: ignore
    return {"accuracy_f1": (accuracy + f1) / 2, "accuracy": accuracy, "f1": f1}


def _pearson_spearman(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """0 where a correlation is not defined: one row, or constant predictions or targets."""
    found, wanted = _finite("predictions", predictions), _finite("targets", targets)
    if len(found) < 2:
        pearson = spearman = 0.0
    else:
        with warnings.catch_warnings():  # constant and nearly constant input
            warnings.simplefilter("ignore")
            pearson = _zero_if_undefined(pearsonr(found, wanted).statistic)  # pyright: ignore
            spearman = _zero_if_undefined(spearmanr(found, wanted).statistic)  # pyright: ignore
    return {"pearson_spearman": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


def _exact_match(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """Runs of white space count as one space: a T5 tokenizer cannot tell them apart."""
    found = [" ".join(str(text).split()) for text in predictions]
    wanted = [" ".join(str(text).split()) for text in targets]
    return {"exact_match": _share_equal(found, wanted)}


def _recall_at_1(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """The share of rows whose own target ranks first."""
    ranks = np.asarray(predictions, dtype=np.float64)
    if not (ranks >= 1).all():
        raise MetricError("recall_at_1", f"ranks start at 1, got {ranks.min():g}")
    return {"recall_at_1": float(np.mean(ranks == 1)), "mrr": float(np.mean(1 / ranks))}


def _mrr(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """The mean reciprocal rank of each row's own target."""
    scores = _recall_at_1(predictions, targets, labels)
    return {"mrr": scores["mrr"], "recall_at_1": scores["recall_at_1"]}


def _share_equal(predictions: Sequence[Any], targets: Sequence[Any]) -> float:
    return float(np.mean([found == wanted for found, wanted in zip(predictions, targets, strict=True)]))


def _finite(what: str, values: Sequence[Any]) -> np.ndarray:
    for position, value in enumerate(values):
        if isinstance(value, str) or not math.isfinite(value):
            raise MetricError("pearson_spearman", f"{what}[{position}] is {value!r}, not a finite number")
    return np.asarray(values, dtype=np.float64)


def _zero_if_undefined(correlation: float) -> float:
    return 0.0 if math.isnan(correlation) else float(correlation)


Metric = Callable[[Sequence[Any], Sequence[Any], Sequence[str]], dict[str, float]]

METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        "accuracy": _accuracy,
        "matthews": _matthews,
        "accuracy_f1": _accuracy_f1,
        "pearson_spearman": _pearson_spearman,
        "exact_match": _exact_match,
        "recall_at_1": _recall_at_1,
        "mrr": _mrr,
    }
)
