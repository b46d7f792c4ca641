"""Golden examples: compares what a version answered where it was trained with what it answers on this server.

Numbers may differ by the manifest's tolerance for the coarser of the two dtypes. Texts are compared only if both are
float32: where one token changes, the rest of a greedy answer changes too, and no tolerance measures that.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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


def difference(answer: Answer, expected: Mapping[str, Any], tolerance: float, *, exact_text: bool) -> str | None:
    """What differs, in words; None if nothing does. Values that `expected` does not have are not compared."""
    match answer:
        case ClassAnswer():
            return _class_difference(answer, expected, tolerance)
        case ValueAnswer():
            value = expected.get("value")
            scale = max(1.0, abs(_finite(value) or 0.0))
            return _number_difference("value", answer.value, value, tolerance * scale)
        case TextAnswer():
            text = expected.get("text")
            if exact_text and text is not None and answer.text != text:
                return f"text {answer.text[:200]!r} instead of {str(text)[:200]!r}"
            return None
        case VectorAnswer():
            return _vector_difference(answer.values, expected.get("embedding"), tolerance)
        case LabelsAnswer():  # its labels follow from the scores and the manifest's thresholds
            return _scores_difference(answer.scores, expected.get("scores"), tolerance)
        case SpansAnswer():
            return _spans_difference(answer, expected, tolerance)
        case RelevanceAnswer():
            return _number_difference("relevance", answer.relevance, expected.get("relevance"), tolerance)


def tolerance_for(tolerances: Mapping[str, float], dtypes: Iterable[str]) -> float:
    """The widest tolerance for `dtypes` ("bfloat16"). A dtype that `tolerances` lacks counts as the widest of all."""
    widest = max(tolerances.values(), default=0.0)
    return max(tolerances.get(dtype, widest) for dtype in dtypes)


def _class_difference(answer: ClassAnswer, expected: Mapping[str, Any], tolerance: float) -> str | None:
    if expected.get("scores") is not None:
        if why := _scores_difference(answer.scores, expected["scores"], tolerance):
            return why
    elif why := _number_difference("score", answer.score, expected.get("score"), tolerance):
        return why
    label = expected.get("label")
    runner_up = sorted(answer.scores)[-2] if len(answer.scores) > 1 else 0.0
    if label is not None and label != answer.label and answer.score - runner_up > 2 * tolerance:
        return f"label {answer.label!r} instead of {label!r}"
    return None


def _scores_difference(ours: Sequence[float], theirs: Any, tolerance: float) -> str | None:
    if theirs is None:
        return None
    if not isinstance(theirs, list | tuple) or len(theirs) != len(ours):
        return f"{len(ours)} scores instead of {str(theirs)[:200]}"
    differences = (
        _number_difference(f"score {index}", *scores, tolerance)
        for index, scores in enumerate(zip(ours, theirs, strict=True))
    )
    return next((why for why in differences if why), None)


def _vector_difference(ours: Sequence[float], theirs: Any, tolerance: float) -> str | None:
    """Compares by Euclidean distance: both vectors have length 1, so it means the same for any dimension."""
    if theirs is None:
        return None
    if not isinstance(theirs, list | tuple) or len(theirs) != len(ours):
        return f"{len(ours)} dimensions instead of {str(theirs)[:200]}"
    numbers = [number for value in theirs if (number := _finite(value)) is not None]
    if len(numbers) < len(theirs):
        return f"an embedding instead of {str(theirs)[:200]}"
    if not (distance := math.dist(ours, numbers)) <= tolerance:
        return f"an embedding {distance:.4g} away (tolerance {tolerance:g})"
    return None


def _spans_difference(answer: SpansAnswer, expected: Mapping[str, Any], tolerance: float) -> str | None:
    """Compares each word's probability to be outside, and the spans that are sure whatever the tolerance does.

    A span's edges may move where a word beside it is in doubt.
    """
    outside = expected.get("outside") or ()
    if len(outside) != len(answer.outside):
        return f"{len(answer.outside)} words instead of {len(outside)}"
    for index, (ours, theirs) in enumerate(zip(answer.outside, outside, strict=True)):
        if why := _number_difference(f"outside of word {index}", ours, theirs, tolerance):
            return why
    for span in expected.get("spans") or ():
        known = {(ours.start, ours.end, ours.label): ours.score for ours in answer.spans}
        where = f"{span['label']} at {span['start']} to {span['end']}"
        score = known.get((span["start"], span["end"], span["label"]))
        if score is not None:
            if why := _number_difference(f"score of {where}", score, span["score"], tolerance):
                return why
        elif span["score"] > 0.5 + tolerance and not any(
            ours.label == span["label"] and ours.start < span["end"] and span["start"] < ours.end
            for ours in answer.spans
        ):
            return f"no {where}"
    return None


def _number_difference(name: str, ours: float, theirs: Any, tolerance: float) -> str | None:
    if theirs is None:
        return None
    number = _finite(theirs)
    if number is None or not abs(ours - number) <= tolerance:
        return f"{name} {ours:.6g} instead of {repr(theirs)[:200]} (tolerance {tolerance:g})"
    return None


def _finite(value: Any) -> float | None:
    """The value as a finite float; None if it is no number, or too large for a float."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:
        return None
