"""The answer of a side network for one row: a class, a value, a text, a vector or several labels. Plain data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAnswer:
    """The best label, its probability, and the probability of every label in the spec's order."""

    label: str
    score: float
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueAnswer:
    """A number in the task's unit."""

    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAnswer:
    """Generated text and its token ids, without start and end tokens."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorAnswer:
    """An embedding of Euclidean length 1, in float32 precision."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsAnswer:
    """The labels whose score reaches their threshold, most certain first, and the score of every label in the spec's
    order. Each score is a probability by itself: they do not sum to 1."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]


Answer = ClassAnswer | ValueAnswer | TextAnswer | VectorAnswer | LabelsAnswer
