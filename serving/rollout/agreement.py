"""Whether two versions' answers to the same input say the same, and how far apart they are. Pure."""

import math
from difflib import SequenceMatcher
from operator import mul

from ladder.answers import Answer, ClassAnswer, TextAnswer, ValueAnswer, VectorAnswer
from side_registry.task import TaskSpec

NEAR_VALUES = 0.05
"""Values agree within this part of the task's range."""
NEAR_UNBOUNDED = 1e-3
"""And where it has no range, within this part of the larger one."""
NEAR_VECTORS = 0.99
"""Vectors agree from this cosine on."""
COMPARED_TOKENS = 128
"""Of each text, for how far apart they are: a long one would take its time on the event loop."""

Said = tuple[TaskSpec, Answer]
"""An answer, and the spec of the version that gave it: another one may have other labels."""


def compare(expected: Said, found: Said) -> tuple[bool, float]:
    """Whether they agree, and their drift: 0 the same, 1 nothing in common. Answers of two kinds have nothing."""
    match expected[1], found[1]:
        case ClassAnswer() as left, ClassAnswer() as right:
            return left.label == right.label, _variation(_by_label(expected[0], left), _by_label(found[0], right))
        case ValueAnswer(value=left), ValueAnswer(value=right):
            return _values(expected[0], left, right)
        case TextAnswer() as left, TextAnswer() as right:
            return left.text == right.text, _unlike(left, right)
        case VectorAnswer(values=left), VectorAnswer(values=right) if len(left) == len(right):
            return _vectors(left, right)
    return False, 1.0


def in_words(answer: Answer) -> str:
    """For a person to read."""
    match answer:
        case ClassAnswer(label=label, score=score):
            return f"{label} ({score:.2f})"
        case ValueAnswer(value=value):
            return f"{value:.4g}"
        case TextAnswer(text=text):
            return text
        case VectorAnswer(values=values):
            return f"[{', '.join(f'{value:.3f}' for value in values[:4])}, ...] ({len(values)} numbers)"


def _by_label(spec: TaskSpec, answer: ClassAnswer) -> dict[str, float]:
    return dict(zip(spec.labels, answer.scores, strict=True))


def _variation(left: dict[str, float], right: dict[str, float]) -> float:
    """The total variation distance of two distributions."""
    return _within(sum(abs(left.get(label, 0.0) - right.get(label, 0.0)) for label in {*left, *right}) / 2)


def _values(spec: TaskSpec, left: float, right: float) -> tuple[bool, float]:
    apart = abs(left - right)
    if spec.low is not None and spec.high is not None:
        share = apart / (spec.high - spec.low)
        return share <= NEAR_VALUES, _within(share)
    share = apart / (max(abs(left), abs(right)) or 1.0)
    return share <= NEAR_UNBOUNDED, _within(share)


def _unlike(left: TextAnswer, right: TextAnswer) -> float:
    first, second = left.tokens[:COMPARED_TOKENS], right.tokens[:COMPARED_TOKENS]
    return 0.0 if first == second else 1.0 - SequenceMatcher(None, first, second, autojunk=False).ratio()


def _vectors(left: tuple[float, ...], right: tuple[float, ...]) -> tuple[bool, float]:
    lengths = math.hypot(*left) * math.hypot(*right)
    cosine = sum(map(mul, left, right)) / lengths if lengths else 0.0
    return cosine >= NEAR_VECTORS, _within((1 - cosine) / 2)


def _within(drift: float) -> float:
    return min(max(drift, 0.0), 1.0)
