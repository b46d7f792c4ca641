"""Scores of labels: accuracy, Matthews correlation, F1, and the same for each class.

All of them are functions of how often each prediction came for each target, so rows are counted once.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.errors import MetricError

Pairs = Mapping[tuple[Any, Any], int]
"""Rows by (prediction, target); at least one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """What a model does with one class; 0 where a score is not defined."""

    precision: float
    recall: float
    f1: float
    rows: int
    """Whose target it is."""
    answered: int
    """That were answered with it."""


def pairs_of(predictions: Sequence[Any], targets: Sequence[Any]) -> Pairs:
    """Count the rows of two sequences of the same length."""
    return Counter(zip(predictions, targets, strict=True))


def accuracy(pairs: Pairs) -> float:
    """The share of predictions that equal their targets."""
    return _hits(pairs) / sum(pairs.values())


def matthews(pairs: Pairs) -> float:
    """An invalid output is one more class, which is never right. 0 when predictions or targets are all the same."""
    rows = sum(pairs.values())
    answered, right = _totals(pairs)
    covariance = _hits(pairs) * rows - sum(count * answered[value] for value, count in right.items())
    spread_answered = rows**2 - sum(count**2 for count in answered.values())
    spread_right = rows**2 - sum(count**2 for count in right.values())
    spread = math.sqrt(spread_answered * spread_right)
    return covariance / spread if spread else 0.0


def accuracy_f1(pairs: Pairs, labels: Sequence[str]) -> tuple[float, float]:
    """Accuracy and the F1 of the second label. An invalid output counts as the opposite of its target, as in T5's own
    evaluation.

    Raises:
        MetricError: there are not two labels.
    """
    if len(labels) != 2:
        raise MetricError(
            "accuracy_f1", f"needs the task's two labels, the second is the positive one; got {len(labels)}"
        )
    positive = labels[1]
    binary: Counter[tuple[bool, bool]] = Counter()
    for (prediction, target), count in pairs.items():
        is_positive = target == positive
        binary[prediction == positive if prediction in labels else not is_positive, is_positive] += count
    return accuracy(binary), _class_scores(binary, True).f1


def class_scores(pairs: Pairs, labels: Sequence[str]) -> dict[str, ClassScores]:
    """The scores of each label, in the labels' order."""
    return {label: _class_scores(pairs, label) for label in labels}


def _class_scores(pairs: Pairs, label: Any) -> ClassScores:
    hits = pairs.get((label, label), 0)
    answered, right = _totals(pairs)
    return ClassScores(
        precision=hits / answered[label] if answered[label] else 0.0,
        recall=hits / right[label] if right[label] else 0.0,
        f1=2 * hits / (answered[label] + right[label]) if answered[label] + right[label] else 0.0,
        rows=right[label],
        answered=answered[label],
    )


def _hits(pairs: Pairs) -> int:
    return sum(count for (prediction, target), count in pairs.items() if prediction == target)


def _totals(pairs: Pairs) -> tuple[Counter[Any], Counter[Any]]:
    """Rows by prediction, and by target."""
    answered: Counter[Any] = Counter()
    right: Counter[Any] = Counter()
    for (prediction, target), count in pairs.items():
        answered[prediction] += count
        right[target] += count
    return answered, right
