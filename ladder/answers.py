"""The answer of a side network for one row: a class, value, text, vector, several labels, spans, relevance."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An entity in a text. Positions count Unicode code points of the text as the caller sent it, from 0."""

    start: int
    end: int
    """One past its last character."""
    label: str
    score: float
    """Mean over its words of the label's probability."""
    text: str
    """Its characters, `text[start:end]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpansAnswer:
    """The entities of a text, in its order. They do not overlap."""

    spans: tuple[Span, ...]
    outside: tuple[float, ...]
    """For each word, the probability that it is in no entity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelevanceAnswer:
    """How relevant a passage is for a query, 0 to 1."""

    relevance: float


Answer = ClassAnswer | ValueAnswer | TextAnswer | VectorAnswer | LabelsAnswer | SpansAnswer | RelevanceAnswer
