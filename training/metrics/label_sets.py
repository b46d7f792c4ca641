"""Scores of answers with several labels, by scikit-learn: F1 and average precision."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import numpy as np


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


def flags(rows: Sequence[AbstractSet[str] | Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """(N, K) bool: which labels each row has."""
    index = {label: number for number, label in enumerate(labels)}
    made = np.zeros((len(rows), len(labels)), dtype=bool)
    for number, row in enumerate(rows):
        made[number, [index[label] for label in row]] = True
    return made
