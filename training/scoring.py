"""From labelled examples to scores: the rows to answer, and what the answers are worth. Needs no model."""

from collections.abc import Sequence
from typing import Any

from side_registry.task import TaskSpec
from training.data import Example, as_fields
from training.metrics import score
from training.ranking import ranks


def asked(spec: TaskSpec, examples: Sequence[Example]) -> list[dict[str, str]]:
    """The rows that have to be answered: the examples' own; for an embedding, their distinct targets after them."""
    rows = [example.fields for example in examples]
    if spec.kind == "embedding":
        rows += [as_fields(spec, text) for text in dict.fromkeys(str(example.target) for example in examples)]
    return rows


def score_values(spec: TaskSpec, values: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
    """The spec's metric; the headline under the metric's own name.

    Args:
        values: labels, numbers, texts or vectors, one for each of `asked(spec, examples)`.
    """
    targets = [example.target for example in examples]
    if spec.kind == "embedding":
        [field] = spec.fields
        values = ranks([(example.fields[field], str(example.target)) for example in examples], values)
    return score(spec.metric, values, targets, labels=spec.labels)
