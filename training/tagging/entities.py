"""Entities as data files have them: spans of a text, or a tag for each token.

- A span is an object with `start`, `end` and `label`; positions count characters (Unicode code points) of the text as
  the file has it, from 0, and `end` is one past the last. If it has `text` too, that must be these characters.
- A tag is `O`, `B-LABEL` or `I-LABEL` (also BIOES and BILOU, whose other prefixes mean the same words). The text is the
  tokens with a space between any two. An `I` that follows no word of its label begins an entity.

Knows no files, tokenizers or tensors.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from side_registry.specs.task import TaskSpec
from training.errors import Misfit

TOKENS = "tokens"
TAGS = "tags"
"""Columns of rows that have a tag for each token, unless they are renamed."""

Span = dict[str, Any]
"""With start, end and label, JSON-ready."""

BEGINS = {"B": True, "I": False, "E": False, "L": False, "S": True, "U": True}
"""By a tag's prefix: whether an entity begins there in any case. E and L end an entity, S and U are one word."""


class SpanReader:
    """Reads the spans of a row: a list of objects, or the JSON text of one."""

    def __init__(self, spec: TaskSpec) -> None:
        self._labels = spec.labels
        self._what = f"target {spec.target!r}"

    def __call__(self, value: Any) -> list[Span]:
        """Return the spans in the order of the text. Raises Misfit: no list of spans, or spans that overlap."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise Misfit(f"{self._what} is text that is no JSON; {self._form}") from None
        if not isinstance(value, list):
            raise Misfit(f"{self._what} is no list; {self._form}")
        spans = [self._read(f"{self._what}, span {number},", span) for number, span in enumerate(value, 1)]
        spans.sort(key=lambda span: span["start"])
        for left, right in pairwise(spans):
            if right["start"] < left["end"]:
                raise Misfit(f"{self._what}: {_shown(left)} and {_shown(right)} overlap; a character has one label")
        return spans

    @property
    def _form(self) -> str:
        return 'give a list such as [{"start": 0, "end": 5, "label": "' + self._labels[0] + '"}], or []'

    def _read(self, what: str, span: Any) -> Span:
        if not isinstance(span, dict):
            raise Misfit(f"{what} is no object; {self._form}")
        if missing := [name for name in ("start", "end", "label") if name not in span]:
            raise Misfit(f"{what} has no {missing[0]}; {self._form}")
        start, end, label = span["start"], span["end"], span["label"]
        if type(start) is not int or type(end) is not int or not 0 <= start < end:
            raise Misfit(f"{what} needs whole numbers 0 <= start < end, got {start!r:.40} and {end!r:.40}")
        if label not in self._labels:
            raise Misfit(f"{what} has the label {str(label)[:80]!r}, not one of {', '.join(self._labels)}")
        said = {"text": span["text"]} if isinstance(span.get("text"), str) else {}
        return {"start": start, "end": end, "label": label, **said}


def check_spans(text: str, spans: Sequence[Span]) -> list[Span]:
    """Return the spans, with start, end and label alone.

    Raises:
        Misfit: a span lies outside the text, has no visible character, or says that it is another text.
    """
    for span in spans:
        start, end = span["start"], span["end"]
        if end > len(text):
            raise Misfit(f"{_shown(span)} lies outside the text, which has {len(text)} characters")
        found = text[start:end]
        if not found.strip():
            raise Misfit(f"{_shown(span)} is only white space in the text")
        if span.get("text", found) != found:
            why = f"says {span['text'][:80]!r}, and these characters of the text are {found[:80]!r}"
            raise Misfit(f"{_shown(span)} {why}; count code points of the text as it is in the file")
    return [{name: span[name] for name in ("start", "end", "label")} for span in spans]


def join_tokens(tokens: Any, tags: Any, labels: Sequence[str], names: Sequence[str] = ()) -> tuple[str, list[Span]]:
    """Make a text of tokens, and spans of their tags.

    Args:
        names: of tags, where the file has their positions.

    Raises:
        Misfit: not as many tags as tokens, an empty token, or a tag that is none of the labels'.
    """
    if not isinstance(tokens, list) or not isinstance(tags, list):
        raise Misfit("tokens and tags must be lists, with one tag for each token")
    if len(tokens) != len(tags):
        raise Misfit(f"has {len(tokens)} tokens and {len(tags)} tags; give one tag for each token")
    text = ""
    spans: list[Span] = []
    before = None
    for number, (token, tag) in enumerate(zip(tokens, tags, strict=True), 1):
        if not isinstance(token, str) or not token.strip():
            raise Misfit(f"token {number} is {token!r:.40}; give each a text that is not empty")
        label, begins = _read_tag(number, tag, labels, names)
        text = f"{text} {token}" if number > 1 else token
        start = len(text) - len(token)
        if label is not None and (begins or label != before):
            spans.append({"start": start, "end": len(text), "label": label})
        elif label is not None:
            spans[-1]["end"] = len(text)
        before = label
    return text, spans


def _read_tag(number: int, tag: Any, labels: Sequence[str], names: Sequence[str]) -> tuple[str | None, bool]:
    """The label of a tag, None for O, and whether an entity begins there in any case."""
    if type(tag) is int:
        if not 0 <= tag < len(names):
            known = (
                f"0 to {len(names) - 1}" if names else "text, or integers whose names a Parquet file of datasets has"
            )
            raise Misfit(f"tag {number} is {tag}; tags are {known}")
        tag = names[tag]
    prefix, dash, label = str(tag).partition("-")
    if tag == "O":
        return None, False
    if not isinstance(tag, str) or not dash or prefix not in BEGINS:
        raise Misfit(f"tag {number} is {str(tag)[:80]!r}; write O, B-{labels[0]} or I-{labels[0]}")
    if label not in labels:
        raise Misfit(f"tag {number} is {tag[:80]!r}, and its label is not one of {', '.join(labels)}")
    return label, BEGINS[prefix]


def _shown(span: Span) -> str:
    return f"span {span['start']} to {span['end']} ({span['label']})"
