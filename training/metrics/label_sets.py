"""Scores of answers with several labels, by scikit-learn: F1 and average precision."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import numpy as np

from training.metrics.classes import ClassScores


class LabelScores(NamedTuple):
    """One answer: the labels that it has, and the score of every label in the spec's order."""

    labels: Sequence[str]
    scores: Sequence[float]


def score_label_sets(
    predictions: Sequence[LabelScores], targets: Sequence[AbstractSet[str]], labels: Sequence[str]
) -> dict[str, float]:
    """F1 over all decisions (micro) and as the mean over labels (macro), and the mean average precision of the labels.

    A label that no target has and no answer has is left out of the means: nothing can be said of it. Average precision
    needs a target that has the label; it ranks rows by their scores, so it does not depend on thresholds.

    Args:
        labels: of the task, in the order of the scores.
    """
    from sklearn.metrics import average_precision_score, f1_score

    answered = flags([prediction.labels for prediction in predictions], labels)
    right = flags(targets, labels)
    scores = np.asarray([prediction.scores for prediction in predictions], dtype=np.float64)
    seen = right.any(axis=0) | answered.any(axis=0)
    ranked = right.any(axis=0)
    how: dict[str, Any] = {"zero_division": 0.0}
    return {
        "f1_micro": float(f1_score(right.ravel(), answered.ravel(), **how)),
        "f1_macro": float(f1_score(right[:, seen], answered[:, seen], average="macro", **how)) if seen.any() else 0.0,
        "average_precision": float(
            np.mean([average_precision_score(right[:, at], scores[:, at]) for at in np.flatnonzero(ranked)])
        )
        if ranked.any()
        else 0.0,
    }


def label_set_classes(
    predictions: Sequence[LabelScores], targets: Sequence[AbstractSet[str]], labels: Sequence[str]
) -> dict[str, ClassScores]:
    """The scores of each label, in the labels' order."""
    answered = flags([prediction.labels for prediction in predictions], labels)
    right = flags(targets, labels)
    counts = zip(
        labels, (answered & right).sum(0).tolist(), answered.sum(0).tolist(), right.sum(0).tolist(), strict=True
    )
    return {
        label: ClassScores(
            precision=hits / answers if answers else 0.0,
            recall=hits / rows if rows else 0.0,
            f1=2 * hits / (answers + rows) if answers + rows else 0.0,
            rows=rows,
            answered=answers,
        )
        for label, hits, answers, rows in counts
    }


def resampler(
    predictions: Sequence[LabelScores], targets: Sequence[AbstractSet[str]], labels: Sequence[str]
) -> Callable[[np.ndarray], dict[str, float]]:
    """A function that gives the scores of `score_label_sets` for rows with some indices. It sorts the scores once, so
    it is fast enough to be called a thousand times.
    """
    answered = flags([prediction.labels for prediction in predictions], labels)
    right = flags(targets, labels)
    values = np.asarray([prediction.scores for prediction in predictions], dtype=np.float64)
    order = np.argsort(-values, axis=0, kind="stable")
    ranked_right = np.take_along_axis(right, order, 0)
    ranked = np.take_along_axis(values, order, 0)
    last = np.vstack([ranked[:-1] > ranked[1:], np.ones((1, len(labels)), dtype=bool)])  # of equal scores

    def scores(rows: np.ndarray) -> dict[str, float]:
        hits = (answered & right)[rows].sum(0)
        both = answered[rows].sum(0) + right[rows].sum(0)
        seen = both > 0
        times = np.bincount(rows, minlength=len(values))[order]
        found = np.where(last, np.cumsum(times * ranked_right, 0), 0)
        above = np.maximum(np.cumsum(times, 0), 1)
        gained = np.diff(np.maximum.accumulate(found, 0), axis=0, prepend=0)
        total = found[-1]
        precision = (gained * found / above).sum(0)[total > 0] / total[total > 0]
        return {
            "f1_micro": float(2 * hits.sum() / max(both.sum(), 1)),
            "f1_macro": float((2 * hits[seen] / both[seen]).mean()) if seen.any() else 0.0,
            "average_precision": float(precision.mean()) if len(precision) else 0.0,
        }

    return scores


def flags(rows: Sequence[AbstractSet[str] | Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """(N, K) bool: which labels each row has."""
    index = {label: number for number, label in enumerate(labels)}
    made = np.zeros((len(rows), len(labels)), dtype=bool)
    for number, row in enumerate(rows):
        made[number, [index[label] for label in row]] = True
    return made
