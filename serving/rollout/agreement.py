"""Compares two versions' answers to the same input: whether they agree, and how far apart they are. Pure functions."""

import math
from difflib import SequenceMatcher
from operator import mul

from ladder.answers import (
    Answer,
    ClassAnswer,
    LabelsAnswer,
    RelevanceAnswer,
    SpansAnswer,
    TextAnswer,
    ValueAnswer,
    VectorAnswer,
)
from side_registry.specs.task import TaskSpec

NEAR_VALUES = 0.05
"""Values agree if their distance is at most this part of the task's range."""
NEAR_UNBOUNDED = 1e-3
"""Without a range: at most this part of the larger absolute value."""
NEAR_VECTORS = 0.99
"""Vectors agree if their cosine is at least this."""
COMPARED_TOKENS = 128
"""Tokens of each text from which the drift is computed: long texts would block the event loop."""

VersionAnswer = tuple[TaskSpec, Answer]
"""An answer, and the spec of the version that gave it: versions of a task may differ in their labels."""


def compare(expected: VersionAnswer, actual: VersionAnswer) -> tuple[bool, float]:
    """Whether two answers agree, and their drift: 0 for equal ones, 1 for no similarity or answers of two kinds."""
    match expected[1], actual[1]:
        case ClassAnswer() as left, ClassAnswer() as right:
            return left.label == right.label, _total_variation(
                _by_label(expected[0], left), _by_label(actual[0], right)
            )
        case ValueAnswer(value=left), ValueAnswer(value=right):
            return _values(expected[0], left, right)
        case TextAnswer() as left, TextAnswer() as right:
            return left.text == right.text, _text_drift(left, right)
        case VectorAnswer(values=left), VectorAnswer(values=right) if len(left) == len(right):
            return _vectors(left, right)
        case LabelsAnswer() as left, LabelsAnswer() as right:
            both = _by_label(expected[0], left), _by_label(actual[0], right)
            return set(left.labels) == set(right.labels), _largest_distance(*both)
        case SpansAnswer() as left, SpansAnswer() as right:
            return _spans(left, right)
        case RelevanceAnswer(relevance=left), RelevanceAnswer(relevance=right):
            return abs(left - right) <= NEAR_VALUES, _clamped(abs(left - right))
    return False, 1.0


def in_words(answer: Answer) -> str:
    """The answer as text for a person."""
    match answer:
        case ClassAnswer(label=label, score=score):
            return f"{label} ({score:.2f})"
        case ValueAnswer(value=value):
            return f"{value:.4g}"
        case TextAnswer(text=text):
            return text
        case VectorAnswer(values=values):
            return f"[{', '.join(f'{value:.3f}' for value in values[:4])}, ...] ({len(values)} numbers)"
        case RelevanceAnswer(relevance=relevance):
            return f"{relevance:.3f}"
        case LabelsAnswer(labels=labels):
            return ", ".join(labels) or "no label"
        case SpansAnswer(spans=spans):
            return ", ".join(f"{span.text} ({span.label} {span.start}-{span.end})" for span in spans) or "no entities"


def _by_label(spec: TaskSpec, answer: ClassAnswer | LabelsAnswer) -> dict[str, float]:
    return dict(zip(spec.labels, answer.scores, strict=True))


def _total_variation(left: dict[str, float], right: dict[str, float]) -> float:
    """Total variation distance of two distributions."""
    return _clamped(sum(abs(left.get(label, 0.0) - right.get(label, 0.0)) for label in {*left, *right}) / 2)


def _largest_distance(left: dict[str, float], right: dict[str, float]) -> float:
    """Of the two scores of a label; a label that one version does not know has the score 0 there."""
    return _clamped(max(abs(left.get(label, 0.0) - right.get(label, 0.0)) for label in {*left, *right}))


def _values(spec: TaskSpec, left: float, right: float) -> tuple[bool, float]:
    distance = abs(left - right)
    if spec.low is not None and spec.high is not None:
        share = distance / (spec.high - spec.low)
        return share <= NEAR_VALUES, _clamped(share)
    share = distance / (max(abs(left), abs(right)) or 1.0)
    return share <= NEAR_UNBOUNDED, _clamped(share)


def _text_drift(left: TextAnswer, right: TextAnswer) -> float:
    first = left.tokens[:COMPARED_TOKENS]
    second = right.tokens[:COMPARED_TOKENS]
    return 0.0 if first == second else 1.0 - SequenceMatcher(None, first, second, autojunk=False).ratio()


def _vectors(left: tuple[float, ...], right: tuple[float, ...]) -> tuple[bool, float]:
    lengths = math.hypot(*left) * math.hypot(*right)
    cosine = sum(map(mul, left, right)) / lengths if lengths else 0.0
    return cosine >= NEAR_VECTORS, _clamped((1 - cosine) / 2)


def _spans(left: SpansAnswer, right: SpansAnswer) -> tuple[bool, float]:
    """Whether both find the same entities; 1 - F1 of the one's entities against the other's."""
    first, second = ({(span.start, span.end, span.label) for span in answer.spans} for answer in (left, right))
    found = len(first) + len(second)
    return first == second, 1 - 2 * len(first & second) / found if found else 0.0


def _clamped(drift: float) -> float:
    return min(max(drift, 0.0), 1.0)
