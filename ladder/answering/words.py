"""The words of a text and the tokens that they begin with; long texts as windows that overlap.

A word is what is tagged as one. Letters and digits in a row are one word; so entities begin and end at its edges. Where
a script has no spaces between words, and for Korean, whose particles follow without one, each token is a word. A word
never begins or ends within a user-perceived character (grapheme cluster): an emoji of several code points, or a letter
and its combining marks, are not cut, whatever the tokenizer's normalization makes of them. Knows no torch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import regex

from ladder.answers import Answer, Span, SpansAnswer
from ladder.backbone.tokenizer import TokenOffsets

MAX_WINDOWS = 64
"""Most windows of one text; what comes after them is not read."""
OVERLAP = 0.25
"""Part of a window's tokens that the next window reads again."""
SLACK = 2
"""Tokens that a part of a text may have more by itself than within the text."""
LEAST_TOKENS = 8
"""Tokens of the text that a window needs at least, besides those of the template."""

LETTER = regex.compile(
    r"[[\p{L}\p{M}\p{N}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]", regex.V1
)
"""What words are made of in scripts with spaces between them."""
CLUSTER = regex.compile(r"\X")
INVISIBLE = "\u200b\u200e\u200f\u2060\ufeff"
"""Characters without width that are no part of a word; joiners are not among them."""


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text, in order, for one prompt."""

    text: str
    bounds: tuple[tuple[int, int], ...]
    """Each word's first character and the one after its last."""
    firsts: tuple[int, ...]
    """Each word's first token, an index among the prompt's token ids."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text, as a prompt of its own."""

    start: int
    """Its first character in the text."""
    core: int
    """Entities that begin at this character of the text or later are taken from this window, until the next's core."""
    ids: tuple[int, ...]
    prompt: str
    words: Words


@dataclass(frozen=True, slots=True)
class WindowedText:
    """A text as one window or several."""

    windows: tuple[Window, ...]
    truncated: bool
    """The end of the text, or of a window, is not read."""

    def join(self, outcomes: Sequence[Answer | Exception]) -> SpansAnswer | Exception:
        """Join the answers to the windows; the first exception among them in their place.

        An entity is taken from the window whose core it begins in. Of two that overlap the first stays.
        """
        if len(outcomes) == 1 and isinstance(outcomes[0], SpansAnswer) and not self.windows[0].start:
            return outcomes[0]
        spans: list[Span] = []
        outside: list[float] = []
        stops = [*(window.core for window in self.windows[1:]), float("inf")]
        for window, stop, outcome in zip(self.windows, stops, outcomes, strict=True):
            if isinstance(outcome, Exception):
                return outcome
            assert isinstance(outcome, SpansAnswer)
            for span in outcome.spans:
                start = span.start + window.start
                if window.core <= start < stop and (not spans or spans[-1].end <= start):
                    spans.append(replace(span, start=start, end=span.end + window.start))
            bounds = window.words.bounds[: len(outcome.outside)]
            outside += [
                probability
                for (start, _), probability in zip(bounds, outcome.outside, strict=True)
                if window.core <= start + window.start < stop
            ]
        return SpansAnswer(spans=tuple(spans), outside=tuple(outside))


class OffsetTokenizer(Protocol):
    """What `split_texts` needs of a tokenizer; see `ladder.backbone.tokenizer.Tokenizer`."""

    @property
    def start_tokens(self) -> int:
        """Number of tokens before a prompt's own."""
        ...

    def encode_offsets(self, texts: Sequence[str]) -> list[TokenOffsets]:
        """Return the ids of each text, and which of its characters each id stands for."""
        ...

    def complete(self, ids: Sequence[int], max_tokens: int | None = None) -> tuple[int, ...]:
        """Return a prompt's ids: cut, between start and end token."""
        ...

    def room(self, max_tokens: int | None = None) -> int | None:
        """Return the most tokens of a prompt between its start and end token."""
        ...


class Framed(NamedTuple):
    """A text with what its template puts before and after it."""

    before: str
    text: str
    after: str

    @property
    def prompt(self) -> str:
        """The whole."""
        return f"{self.before}{self.text}{self.after}"


class _Found(NamedTuple):
    """A prompt's own ids and the words of its text; `firsts` are indices among these ids."""

    ids: list[int]
    bounds: list[tuple[int, int]]
    firsts: list[int]
    others: int
    """Tokens that are not the text's."""


def split_texts(
    tokenizer: OffsetTokenizer, texts: Sequence[Framed], max_tokens: int | None, most: int = MAX_WINDOWS
) -> list[WindowedText]:
    """Tokenize texts for tagging: each as one window if its prompt has at most `max_tokens` tokens, else as several.

    Args:
        most: windows of one text, at least 1.
    """
    room = tokenizer.room(max_tokens)
    found = _find(tokenizer, texts)
    plans = [_plan(one, room, most) for one in found]
    parts = [
        Framed(framed.before, framed.text[one.bounds[first][0] : one.bounds[stop - 1][1]], framed.after)
        for framed, one, plan in zip(texts, found, plans, strict=True)
        for first, stop, _ in plan.windows
    ]
    found_parts = iter(zip(parts, _find(tokenizer, parts), strict=True))
    split: list[WindowedText] = []
    for framed, one, plan in zip(texts, found, plans, strict=True):
        if not plan.windows:
            is_cut = room is not None and len(one.ids) > room
            split.append(WindowedText((_window(tokenizer, framed, one, 0, 0, max_tokens, room),), is_cut))
            continue
        windows: list[Window] = []
        is_cut = plan.truncated
        for first, _, core in plan.windows:
            part, of_part = next(found_parts)
            start = one.bounds[first][0]
            core_start = one.bounds[core][0] if core else 0
            windows.append(_window(tokenizer, part, of_part, start, core_start, max_tokens, room))
            is_cut |= room is not None and len(of_part.ids) > room
        split.append(WindowedText(tuple(windows), is_cut))
    return split


class _Plan(NamedTuple):
    """Windows as words: the first, the one after the last, and the first of the core. None: the prompt as it is."""

    windows: list[tuple[int, int, int]]
    truncated: bool


def _plan(found: _Found, room: int | None, most: int) -> _Plan:
    if room is None or len(found.ids) <= room:
        return _Plan([], False)
    budget = room - found.others - SLACK
    if budget < LEAST_TOKENS or not found.bounds:
        return _Plan([], True)
    count = len(found.firsts)
    tokens = [*found.firsts, found.firsts[0] + len(found.ids) - found.others]
    windows: list[tuple[int, int, int]] = []
    first = core = 0
    while len(windows) < most:
        stop = max(bisect_right(tokens, tokens[first] + budget) - 1, first + 1)
        windows.append((first, min(stop, count), core))
        if stop >= count:
            return _Plan(windows, False)
        again = bisect_left(tokens, tokens[stop] - int(budget * OVERLAP), first + 1, stop)
        core = (again + stop + 1) // 2
        first = again
    return _Plan(windows, True)


def _window(
    tokenizer: OffsetTokenizer,
    framed: Framed,
    found: _Found,
    start: int,
    core: int,
    max_tokens: int | None,
    room: int | None,
) -> Window:
    read = [index for index, first in enumerate(found.firsts) if room is None or first < room]
    words = Words(
        framed.text,
        tuple(found.bounds[: len(read)]),
        tuple(found.firsts[index] + tokenizer.start_tokens for index in read),
    )
    return Window(start, core, tokenizer.complete(found.ids, max_tokens), framed.prompt, words)


def _find(tokenizer: OffsetTokenizer, texts: Sequence[Framed]) -> list[_Found]:
    encoded = tokenizer.encode_offsets([framed.prompt for framed in texts])
    return [
        _find_words(framed.text, len(framed.before), *tokens) for framed, tokens in zip(texts, encoded, strict=True)
    ]


def _find_words(text: str, before: int, ids: list[int], offsets: Sequence[tuple[int, int]]) -> _Found:
    """Find the words of a text that begins after `before` characters of its prompt."""
    clusters = _cluster_starts(text)
    bounds: list[tuple[int, int]] = []
    firsts: list[int] = []
    own = 0
    for index, (start, end) in enumerate(offsets):
        start = min(max(start - before, 0), len(text))
        end = min(max(end - before, 0), len(text))
        own += start < end
        while start < end and _is_blank(text[start]):
            start += 1
        while start < end and _is_blank(text[end - 1]):
            end -= 1
        if start == end:
            continue
        if clusters is not None:
            start = clusters[bisect_right(clusters, start) - 1]
            end = clusters[bisect_left(clusters, end)]
        if bounds and (start < bounds[-1][1] or (start == bounds[-1][1] and _is_within_word(text, start))):
            bounds[-1] = (bounds[-1][0], max(bounds[-1][1], end))
        else:
            bounds.append((start, end))
            firsts.append(index)
    return _Found(ids, bounds, firsts, len(ids) - own)


def _cluster_starts(text: str) -> list[int] | None:
    """Where grapheme clusters begin, and the text's length; None where every character is one."""
    if text.isascii():
        return None  # but for CR LF, which is blank
    return [*(match.start() for match in CLUSTER.finditer(text)), len(text)]


def _is_within_word(text: str, index: int) -> bool:
    return LETTER.match(text, index - 1) is not None and LETTER.match(text, index) is not None


def _is_blank(char: str) -> bool:
    return char.isspace() or char in INVISIBLE
