"""Scores of entities: precision, recall and F1 by the library seqeval. An entity is right if span and label are."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.metrics.classes import ClassScores

Entity = Mapping[str, Any]
"""With start, end and label."""


def entity_scores(
    predictions: Sequence[Sequence[Entity]], targets: Sequence[Sequence[Entity]], labels: Sequence[str]
) -> dict[str, float]:
    """Score each text's entities against those it should have.

    Returns:
        F1, precision and recall over all entities (micro average), and the F1 of each label that has any, by name. All
        are 0 where there are no entities at all.
    """
    from seqeval.metrics import classification_report  # it imports scikit-learn, which takes a second

    expected: list[list[str]] = []
    answered: list[list[str]] = []
    for found, right in zip(predictions, targets, strict=True):
        cuts = sorted({entity[edge] for entity in (*found, *right) for edge in ("start", "end")})
        answered.append(_tags(found, cuts, labels))
        expected.append(_tags(right, cuts, labels))
    if not any(expected) and not any(answered):
        return {"entity_f1": 0.0, "precision": 0.0, "recall": 0.0}
    report = classification_report(expected, answered, output_dict=True, zero_division=0)  # type: ignore[arg-type]
    assert isinstance(report, dict)
    total = report["micro avg"]
    by_label = {f"f1_{label}": report[str(index)] for index, label in enumerate(labels) if str(index) in report}
    return {
        "entity_f1": float(total["f1-score"]),
        "precision": float(total["precision"]),
        "recall": float(total["recall"]),
        **{name: float(scores["f1-score"]) for name, scores in by_label.items()},
    }


def entity_counts(found: Sequence[Entity], right: Sequence[Entity]) -> tuple[int, int, int]:
    """How many entities of one text are right, how many were answered, and how many there should be."""
    answered = {(entity["start"], entity["end"], entity["label"]) for entity in found}
    expected = {(entity["start"], entity["end"], entity["label"]) for entity in right}
    return len(answered & expected), len(answered), len(expected)


def entity_classes(
    predictions: Sequence[Sequence[Entity]], targets: Sequence[Sequence[Entity]], labels: Sequence[str]
) -> dict[str, ClassScores]:
    """The scores of each label, in the labels' order; their rows are entities."""
    classes: dict[str, ClassScores] = {}
    for label in labels:
        counts = [
            entity_counts(*([entity for entity in entities if entity["label"] == label] for entities in pair))
            for pair in zip(predictions, targets, strict=True)
        ]
        hits, answered, expected = (sum(part) for part in zip(*counts, strict=True))
        classes[label] = ClassScores(
            precision=hits / answered if answered else 0.0,
            recall=hits / expected if expected else 0.0,
            f1=2 * hits / (answered + expected) if answered + expected else 0.0,
            rows=expected,
            answered=answered,
        )
    return classes


def _tags(entities: Sequence[Entity], cuts: Sequence[int], labels: Sequence[str]) -> list[str]:
    """Tags of the parts between the cuts, which hold every edge: seqeval compares tags. A label is its number."""
    tags = ["O"] * len(cuts)
    index = {cut: number for number, cut in enumerate(cuts)}
    for entity in entities:
        first, stop = index[entity["start"]], index[entity["end"]]
        label = labels.index(entity["label"])
        tags[first:stop] = [f"B-{label}", *[f"I-{label}"] * (stop - first - 1)]
    return tags
