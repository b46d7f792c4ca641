"""Golden examples: rows with the answers that the trainer saw; which of them can be compared, and what a replay costs.

Knows no tokenizer: it bounds tokens by bytes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from side_registry.documents import Document
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS

MAX_EXAMPLES = 1024
MAX_TOLERANCE = 0.2
"""Twice the default of bfloat16. With a larger one nearly every answer would pass: scores lie within 0 and 1."""
MAX_REPLAY_TOKENS = 1 << 16
"""Most tokens of a version's golden examples: each is answered before the version serves."""
SPECIAL_TOKENS = 2
"""Most tokens that a tokenizer adds to a text."""


class GoldenExample(Document):
    """One row and the answer the trainer saw, replayed by a server before it trusts the side network."""

    fields: dict[str, str]
    images: dict[str, str] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """The file of the artifact that holds each image, by the image's field. Documents without images do not have it."""
    expected: dict[str, Any]


def expectation_fault(spec: TaskSpec, expected: Mapping[str, Any]) -> str | None:
    """Why no answer can be compared with an expectation; None if one can."""
    kind = KINDS[spec.kind]
    known = tuple(column.name for column in kind.columns)
    needed = tuple(column.name for column in kind.columns if column.dtype == "float32") or known
    if kind.has_spans:
        known, needed = ("spans", "outside"), ("outside",)
    if unknown := sorted(set(expected) - set(known)):
        return f"unknown key {unknown[0][:80]!r}; an example of {spec.kind} expects {' or '.join(known)}"
    if not any(name in expected for name in needed):
        return f"it expects nothing that can be compared; an example of {spec.kind} needs {' or '.join(needed)}"
    return next(
        (f"{name}: {why}" for name, value in expected.items() if (why := _value_fault(spec, name, value))), None
    )


def tolerance_fault(tolerances: Mapping[str, float]) -> str | None:
    """Why answers cannot be compared within these tolerances, by dtype; None if they can."""
    for dtype, tolerance in tolerances.items():
        if not 0 <= tolerance <= MAX_TOLERANCE:
            return f"{dtype[:80]}: must be within 0..{MAX_TOLERANCE:g}, got {tolerance:g}"
    return None


def decoding_tokens(spec: TaskSpec) -> int:
    """Most tokens that one answer of a task takes to generate, over all beams; 0 for a task without texts."""
    return spec.generation.num_beams * spec.max_new_tokens if KINDS[spec.kind].makes_text else 0


def replay_tokens(spec: TaskSpec, examples: Sequence[GoldenExample]) -> int:
    """Most tokens of the examples' prompts and answers. Nearly always more than a tokenizer makes of them.

    Raises:
        InvalidRow: an example is no row of the task.
    """
    prompts = [spec.render(example.fields) for example in examples]
    sources = [min(len(prompt.encode()) + SPECIAL_TOKENS, spec.max_source_tokens) for prompt in prompts]
    return sum(sources) + len(examples) * decoding_tokens(spec)


def _value_fault(spec: TaskSpec, name: str, value: Any) -> str | None:
    match name:
        case "label":
            return None if value in spec.labels else f"{str(value)[:80]!r} is none of the spec's labels"
        case "labels":
            are_labels = isinstance(value, list | tuple) and all(label in spec.labels for label in value)
            return None if are_labels else "must be a list of the spec's labels"
        case "text":
            return None if isinstance(value, str) else "must be a text"
        case "spans":
            return _spans_fault(spec, value)
        case "outside":
            is_list = isinstance(value, list | tuple) and all(map(_is_finite, value))
            return None if is_list else "must be finite numbers, one for each word"
        case "scores" | "embedding":
            count = spec.outputs
            is_list = isinstance(value, list | tuple) and len(value) == count
            return None if is_list and all(map(_is_finite, value)) else f"must be {count} finite numbers"
        case _:
            return None if _is_finite(value) else "must be a finite number"


def _spans_fault(spec: TaskSpec, value: Any) -> str | None:
    if not isinstance(value, list | tuple):
        return "must be a list of spans"
    for span in value:
        if not isinstance(span, Mapping) or not {"start", "end", "label", "score"} <= span.keys():
            return "each span must have start, end, label and score"
        start, end = span["start"], span["end"]
        if not (type(start) is int and type(end) is int and 0 <= start < end):
            return f"must have 0 <= start < end, got {str(start)[:20]} and {str(end)[:20]}"
        if span["label"] not in spec.labels:
            return f"{str(span['label'])[:80]!r} is none of the spec's labels"
        if not _is_finite(span["score"]):
            return "a span's score must be a finite number"
    return None


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False
