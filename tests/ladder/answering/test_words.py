"""Words of texts and windows of long ones: whatever the tokenizer's normalization does, characters stay whole."""

import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import SpansAnswer, Tokenizer, load_tokenizer
from ladder.answering.words import MAX_WINDOWS, Framed, WindowedText, split_texts
from ladder.answers import Span
from ladder.backbone.tokenizer import Bytes, SentencePiece
from tests import families

ACCENTS = "Jos\u00e9 \u00c1lvarez, S\u00e3o Paulo"
TEXTS = {
    "plain": ("Dr. Smith's mail: jo@x.com!", "Dr . Smith ' s mail : jo @ x . com !"),
    "NFC": (ACCENTS, "Jos\u00e9 \u00c1lvarez , S\u00e3o Paulo"),
    "NFD": (
        unicodedata.normalize("NFD", ACCENTS),
        unicodedata.normalize("NFD", "Jos\u00e9 \u00c1lvarez , S\u00e3o Paulo"),
    ),
    "ligature": ("\ufb01ne \u2460", "\ufb01ne \u2460"),
    "CRLF": ("Ann\r\nBob\tEve", "Ann Bob Eve"),
    "zero width": ("Ann\u200bBob \ufeffEve", "Ann Bob Eve"),
}
"""A text, and its words."""


@pytest.fixture(scope="module", params=["byte-level BPE", "SentencePiece", "bytes"])
def tokenizer(request: pytest.FixtureRequest, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "byte-level BPE":
        return load_tokenizer(tiny_t5)
    if request.param == "bytes":
        return Tokenizer(Bytes(), "bytes", bos_token_id=2)
    path = tmp_path_factory.mktemp("pieces") / "spiece.model"
    path.write_bytes(families.sentence_piece())
    return Tokenizer(SentencePiece(path), "pieces")


def one(tokenizer: Tokenizer, text: str, limit: int | None = None, before: str = "find: ", **how: int) -> WindowedText:
    [split] = split_texts(tokenizer, [Framed(before, text, " end")], limit, **how)
    return split


def words_of(split: WindowedText) -> list[str]:
    return [window.words.text[start:end] for window in split.windows for start, end in window.words.bounds]


@pytest.mark.parametrize("name", TEXTS)
def test_words_are_those_of_the_text_as_it_was_sent(tokenizer: Tokenizer, name: str) -> None:
    text, words = TEXTS[name]
    assert words_of(one(tokenizer, text)) == words.split()


@pytest.mark.parametrize(
    "text", ["\U0001f469\u200d\U0001f469\u200d\U0001f467 b", "\U0001f44d\U0001f3fd ok", "\u2764\ufe0f!"]
)
def test_an_emoji_of_several_code_points_is_in_one_word(tokenizer: Tokenizer, text: str) -> None:
    cluster = regex.match(r"\X", text)
    assert cluster is not None
    assert any(cluster.group() in word for word in words_of(one(tokenizer, text)))


def test_a_script_without_spaces_has_a_word_for_each_token() -> None:
    assert words_of(one(Tokenizer(Bytes(), "bytes"), "\u6771\u4eac Tokyo")) == ["\u6771", "\u4eac", "Tokyo"]


@settings(max_examples=20, deadline=None)
@given(text=st.text(min_size=1, max_size=12))
def test_no_word_cuts_a_character_and_words_follow_each_other(text: str) -> None:
    [window] = one(Tokenizer(Bytes(), "bytes"), text.replace("\0", "x").encode(errors="replace").decode()).windows
    words = window.words
    edges = {match.start() for match in regex.finditer(r"\X", words.text)} | {len(words.text)}
    before = 0
    for start, end in words.bounds:
        assert {start, end} <= edges
        assert before <= start < end
        before = end
    assert list(words.firsts) == sorted(set(words.firsts))


def test_firsts_are_the_tokens_that_words_begin_with(tokenizer: Tokenizer) -> None:
    [window] = one(tokenizer, "the cat sat").windows
    assert window.prompt == "find: the cat sat end"
    for (start, _), first in zip(window.words.bounds, window.words.firsts, strict=True):
        assert tokenizer.decode(window.ids[first : first + 1]).strip()[:1] == window.words.text[start]


def test_a_long_text_is_read_in_windows_that_overlap(tokenizer: Tokenizer) -> None:
    text = " ".join(f"the cat sat{number} on" for number in range(40))
    split = one(tokenizer, text, limit=64)
    assert len(split.windows) > 2
    assert not split.truncated
    whole = [(start, end) for [window] in [one(tokenizer, text).windows] for start, end in window.words.bounds]
    stops = [*(window.core for window in split.windows[1:]), len(text)]
    owned = []
    for window, stop in zip(split.windows, stops, strict=True):
        assert len(window.ids) <= 64
        assert window.prompt == f"find: {window.words.text} end"
        assert text[window.start : window.start + len(window.words.text)] == window.words.text
        bounds = [(start + window.start, end + window.start) for start, end in window.words.bounds]
        owned += [word for word in bounds if window.core <= word[0] < stop]
        assert window.start <= window.core
    assert owned == whole
    assert all(left.start + len(left.words.text) > right.core for left, right in pairwise(split.windows))


def test_a_text_that_all_windows_cannot_hold_is_truncated(tokenizer: Tokenizer) -> None:
    text = "the cat sat on the mat " * 20
    assert one(tokenizer, text, limit=40, most=2).truncated
    assert len(one(tokenizer, text, limit=40, most=2).windows) == 2
    assert len(one(tokenizer, text * 6, limit=24, before="").windows) == MAX_WINDOWS
    [cut] = one(tokenizer, text, limit=12, before="a template that leaves no room for the text").windows
    assert len(cut.ids) == 12


def test_entities_of_windows_are_joined_once(tokenizer: Tokenizer) -> None:
    text = " ".join(f"x{number} Ann" for number in range(60))
    split = one(tokenizer, text, limit=64)
    outcomes = []
    for window in split.windows:
        words = window.words
        spans = tuple(
            Span(start=start, end=end, label="PER", score=0.9, text="Ann")
            for start, end in words.bounds
            if words.text[start:end] == "Ann"
        )
        outcomes.append(SpansAnswer(spans=spans, outside=(0.5,) * len(words.bounds)))
    joined = split.join(outcomes)
    assert isinstance(joined, SpansAnswer)
    assert [text[span.start : span.end] for span in joined.spans] == ["Ann"] * 60
    assert len({span.start for span in joined.spans}) == 60
    assert len(joined.outside) == 120
    failure = ValueError("no")
    assert split.join([*outcomes[:-1], failure]) is failure
