"""Targets that are lists of labels, as data files write them: texts, positions, or a 0 or 1 for each label."""

import json
from typing import Any

from side_registry.specs.task import TaskSpec
from training.errors import JSON_NAMES, Misfit, shown

POSITIONS = "integers are the labels' positions, from 0, only with label_index = true in the task's spec"


class LabelsReader:
    """Lists of labels: their texts, their positions, or a 0 or 1 for each label of the spec."""

    def __init__(self, spec: TaskSpec) -> None:
        self._labels = spec.labels
        self._known = frozenset(spec.labels)
        self._what = f"target {spec.target!r}"
        self._may_be_indices = spec.label_index

    def __call__(self, value: Any) -> frozenset[str]:
        """The labels of one value. Raises Misfit."""
        items = self._parsed(value) if isinstance(value, str) else value
        if not isinstance(items, list):
            given = JSON_NAMES.get(type(items), type(items).__name__)
            raise Misfit(f'{self._what} is {given}; give a list of labels, such as ["{self._labels[0]}"], or []')
        if all(isinstance(item, str) for item in items):
            return frozenset(self._known_label(item) for item in items)
        if self._may_be_indices and all(type(item) is int for item in items):
            return frozenset(self._at(item) for item in items)
        return self._flagged(items)

    def _parsed(self, text: str) -> Any:
        """A cell of a file that has no lists."""
        if not text.strip():
            return []
        if text in self._known or not text.lstrip().startswith("["):
            return [text]
        try:
            return json.loads(text)
        except ValueError:
            raise Misfit(f'{self._what} is {shown(text)}, no JSON list; write ["a", "b"]') from None

    def _known_label(self, label: str) -> str:
        if label not in self._known:
            raise Misfit(f"{self._what} has {shown(label)}, not one of {shown(', '.join(self._labels))}")
        return label

    def _at(self, index: int) -> str:
        if not 0 <= index < len(self._labels):
            raise Misfit(f"{self._what} has {index}; positions are 0 to {len(self._labels) - 1}")
        return self._labels[index]

    def _flagged(self, items: list[Any]) -> frozenset[str]:
        """The labels of a list with a 0 or 1 for each."""
        wrong = next((item for item in items if not isinstance(item, int | float) or item not in (0, 1)), None)
        if wrong is not None:
            raise Misfit(f"{self._what} has {shown(str(wrong))} in its list; give labels' texts; {POSITIONS}")
        if len(items) != len(self._labels):
            why = f"is a list of {len(items)} numbers for {len(self._labels)} labels; give a 0 or 1 for each, or texts"
            raise Misfit(f"{self._what} {why}; {POSITIONS}")
        return frozenset(label for label, flag in zip(self._labels, items, strict=True) if flag)
