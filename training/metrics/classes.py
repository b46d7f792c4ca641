"""Scores of labels: accuracy, Matthews correlation, F1."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.errors import MetricError


def accuracy(predictions: Sequence[Any], targets: Sequence[Any]) -> float:
    """The share of predictions that equal their targets."""
    return float(np.mean([prediction == target for prediction, target in zip(predictions, targets, strict=True)]))


def matthews(predictions: Sequence[Any], targets: Sequence[Any]) -> float:
    """An invalid output is one more class, which is never right. 0 when predictions or targets are all the same."""
    rows = len(targets)
    answered = Counter(predictions)
    right = Counter(targets)
    hits = sum(prediction == target for prediction, target in zip(predictions, targets, strict=True))
    covariance = hits * rows - sum(count * answered[value] for value, count in right.items())
    spread_answered = rows**2 - sum(count**2 for count in answered.values())
    spread_right = rows**2 - sum(count**2 for count in right.values())
    spread = math.sqrt(spread_answered * spread_right)
    return covariance / spread if spread else 0.0


def accuracy_f1(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> tuple[float, float]:
    """Accuracy and the F1 of the second label. An invalid output counts as the opposite of its target, as in T5's own
    evaluation.

    Raises:
        MetricError: there are not two labels.
    """
    if len(labels) != 2:
        raise MetricError(
            "accuracy_f1", f"needs the task's two labels, the second is the positive one; got {len(labels)}"
        )
    right = [target == labels[1] for target in targets]
    answered = [
        prediction == labels[1] if prediction in labels else not positive
        for prediction, positive in zip(predictions, right, strict=True)
    ]
    hits = sum(one and other for one, other in zip(answered, right, strict=True))
    positives = sum(answered) + sum(right)
    return accuracy(answered, right), 2 * hits / positives if positives else 0.0
