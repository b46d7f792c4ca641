"""Answers of a model or of a server as plain values: what `predict --json` and `evaluate --predictions` write."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from side_registry.specs.task_kinds import KINDS, AnswerColumn


def answer_values(answer: Any, kind: str, labels: Sequence[str]) -> dict[str, Any]:
    """An answer by the columns of its kind, JSON-ready. Scores of labels are a dict by label.

    Args:
        answer: of `ladder.answers` or of `serving.client`.
        labels: of the task, in the spec's order.
    """
    has_labels = KINDS[kind].has_labels
    columns = KINDS[kind].columns
    return {column.name: _plain(getattr(answer, column.attribute), column, labels, has_labels) for column in columns}


def _plain(value: Any, column: AnswerColumn, labels: Sequence[str], has_labels: bool) -> Any:
    if column.is_list and has_labels and not isinstance(value, dict):
        return dict(zip(labels, value, strict=True))
    if column.dtype == "spans":
        return [asdict(span) for span in value]
    return list(value) if isinstance(value, tuple) else value
