"""Thresholds of a multilabel task: for each label, the score from which it is part of an answer.

Fitted on validation rows, one label at a time, so that the label's F1 there is the highest. A label that no validation
row has keeps THRESHOLD. F1 on the same rows is a little too good: rows that neither training nor thresholds have seen
tell more.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ladder import Answer, Answerer, ChooseLabels, LabelsAnswer
from side_registry.manifest import THRESHOLD
from training.data import Example
from training.metrics.label_sets import flags


def fit_thresholds(labels: Sequence[str], answers: Sequence[Answer], examples: Sequence[Example]) -> dict[str, float]:
    """A threshold for each label, 0 to 1.

    Args:
        answers: LabelsAnswer, one for each example; their labels do not matter.
    """
    scores = np.asarray([answer.scores for answer in answers if isinstance(answer, LabelsAnswer)], dtype=np.float64)
    right = flags([example.target for example in examples], labels)
    return {label: _best(scores[:, at], right[:, at]) for at, label in enumerate(labels)}


def choose_again(answerer: Answerer, thresholds: Sequence[float], answers: Sequence[Answer]) -> list[Answer]:
    """The answers to the same rows with other thresholds."""
    assert isinstance(answerer, ChooseLabels)
    chooser = replace(answerer, thresholds=tuple(thresholds))
    return [chooser.choose(answer.scores) for answer in answers if isinstance(answer, LabelsAnswer)]


def _best(scores: np.ndarray, right: np.ndarray) -> float:
    """Halfway between the lowest score that the best F1 counts as the label and the next lower one.

    Args:
        scores, right: (N,), of one label.
    """
    if not right.any():
        return THRESHOLD
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits = np.cumsum(right[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + right.sum())
    ends = np.append(ranked[:-1] > ranked[1:], True)  # equal scores are on one side of a threshold
    best = int(np.argmax(np.where(ends, f1, -1.0)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)
