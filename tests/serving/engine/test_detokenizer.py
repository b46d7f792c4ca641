"""Incremental detokenization: the pieces of a text, joined, are the text."""

from collections.abc import Sequence

from ladder import Tokenizer
from serving.engine.detokenizer import IncrementalDetokenizer


def pieces_of(detokenizer: IncrementalDetokenizer, *steps: Sequence[int]) -> list[str]:
    return ["" if (piece := detokenizer.more(step)) is None else piece.text for step in steps]


def test_a_piece_never_ends_within_a_character(tokenizer: Tokenizer) -> None:
    text = "né €5 🎬!"
    tokens = tokenizer.encode(text)[:-1]
    detokenizer = IncrementalDetokenizer(tokenizer.decode)
    pieces = pieces_of(detokenizer, *([token] for token in tokens))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert detokenizer.rest(tokens, text) is None


def test_bytes_that_never_complete_a_character_are_sent_at_the_end(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a€")[:-2]
    detokenizer = IncrementalDetokenizer(tokenizer.decode)
    pieces = pieces_of(detokenizer, *([token] for token in tokens))
    whole = tokenizer.decode(tokens)
    rest = detokenizer.rest(tokens, whole)
    assert rest
    assert "".join(pieces) + rest.text == whole


def test_pieces_have_no_leading_space_that_the_whole_text_loses() -> None:
    words = {1: "▁a", 2: "▁film", 3: "s", 4: "▁"}

    def decode(ids: Sequence[int]) -> str:
        """As SentencePiece: a space before each word but the first."""
        return "".join(words[token] for token in ids).replace("▁", " ").removeprefix(" ")

    detokenizer = IncrementalDetokenizer(decode)
    assert pieces_of(detokenizer, [1], [2, 3], [], [4], [2]) == ["a", " films", "", " ", " film"]


def test_a_text_whose_earlier_characters_may_change_is_held_back() -> None:
    texts = {1: "do", 2: "do n", 3: "don't"}
    detokenizer = IncrementalDetokenizer(lambda ids: texts[len(ids)])
    assert pieces_of(detokenizer, [1], [1]) == ["do", " n"]
    assert pieces_of(detokenizer, [1]) == [""]
