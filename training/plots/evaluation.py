"""Which pictures an evaluation has: by the kind of the task."""

from collections.abc import Sequence
from typing import Any

from side_registry.specs.task import TaskSpec
from training.data import Example
from training.plots.classification import draw_calibration, draw_confusion, draw_scores
from training.plots.regression import draw_values

PLOTTED_KINDS = ("classification", "regression")
"""Kinds of tasks whose evaluation has pictures."""


def draw_evaluation(
    spec: TaskSpec, values: Sequence[Any], confidences: Sequence[float] | None, examples: Sequence[Example]
) -> dict[str, bytes]:
    """PNGs by the names of their files.

    Args:
        spec: of one of PLOTTED_KINDS.
        values, confidences: as `evaluation_of` takes them.
    """
    targets = [example.target for example in examples]
    if spec.kind == "regression":
        return {"values.png": draw_values(spec.name, values, targets)}
    assert confidences is not None
    right = [value == target for value, target in zip(values, targets, strict=True)]
    return {
        "confusion.png": draw_confusion(spec.name, values, targets, spec.labels),
        "calibration.png": draw_calibration(spec.name, confidences, right),
        "scores.png": draw_scores(spec.name, confidences, right),
    }
