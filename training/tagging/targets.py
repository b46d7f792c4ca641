"""Texts as windows, and the tags of their words: what a side network is taught."""

from collections.abc import Iterator, Mapping, Sequence

from ladder import Tokenizer
from ladder.answering import IGNORED, Framed, WindowedText, split_texts
from side_registry.specs.task import TaskSpec
from training.tagging.entities import Span


def windows_of(
    spec: TaskSpec, tokenizer: Tokenizer, rows: Sequence[Mapping[str, str]], most: int | None = None
) -> list[WindowedText]:
    """Return each row's text as windows, as a server reads it.

    Args:
        most: windows of one text; None: as many as a server reads.

    Raises:
        InvalidRow: a row does not fit the spec.
    """
    [field] = spec.fields
    before, after = spec.frame
    for row in rows:
        spec.render(row)
    framed = [Framed(before, row[field], after) for row in rows]
    limits = {} if most is None else {"most": most}
    return split_texts(tokenizer, framed, spec.max_source_tokens, **limits)


def tag_windows(
    spec: TaskSpec, text: WindowedText, spans: Sequence[Span]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield each window's token ids and tags: a word's first token has its tag, the others IGNORED.

    A word that a span only touches has the span's tag too.
    """
    begin = {label: 1 + number for number, label in enumerate(spec.labels)}
    for window in text.windows:
        tags = [IGNORED] * len(window.ids)
        remaining = iter(spans)
        span = next(remaining, None)
        begun = False
        for (start, end), first in zip(window.words.bounds, window.words.firsts, strict=True):
            while span is not None and span["end"] <= start + window.start:
                span = next(remaining, None)
                begun = False
            if span is None or span["start"] >= end + window.start:
                tags[first] = 0
                continue
            tags[first] = begin[span["label"]] + len(spec.labels) * begun
            begun = True
        yield window.ids, tuple(tags)
