"""The evaluation of a task's answers: scores, their intervals, calibration, and the scores of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.data import Example
from training.metrics.classes import ClassScores, class_scores, pairs_of
from training.metrics.entities import entity_classes
from training.metrics.intervals import Interval, intervals
from training.metrics.label_sets import label_set_classes
from training.metrics.scoring import FAMILIES, has_probabilities, measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a model's answers to labelled rows are worth."""

    scores: dict[str, float]
    """By name: the task's metric first, then the others of its family; `ece` of a classification last."""
    intervals: dict[str, Interval]
    """95 % bootstrap intervals of the same scores."""
    classes: dict[str, ClassScores]
    """By label; empty where there are no labels."""


def evaluation_of(
    spec: TaskSpec, values: Sequence[Any], confidences: Sequence[float] | None, examples: Sequence[Example]
) -> Evaluation:
    """Evaluate answers.

    Args:
        values: as `score_values` takes them.
        confidences: the probability of each answered label; None for other kinds of answers.
    Raises:
        MetricError: as `score`.
    """
    names = [*FAMILIES[spec.metric], *(["ece"] if has_probabilities(spec) else [])]
    scores = measure(spec, values, examples, names, confidences)
    classes: dict[str, ClassScores] = {}
    targets = [example.target for example in examples]
    if KINDS[spec.kind].has_thresholds:
        classes = label_set_classes(values, targets, spec.labels)
    elif KINDS[spec.kind].has_spans:
        classes = entity_classes(values, targets, spec.labels)
    elif KINDS[spec.kind].has_labels:
        classes = class_scores(pairs_of(values, targets), spec.labels)
    return Evaluation(scores=scores, intervals=intervals(spec, values, examples, names, confidences), classes=classes)
