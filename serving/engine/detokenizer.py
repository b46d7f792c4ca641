"""Incremental detokenization: the pieces of a text while it is made.

Tokens are not characters: a character may take several, and what a vocabulary makes of a token may depend on those
before it. So all tokens so far are decoded each time, and a piece is what the text grew by, once that cannot change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ladder.answers import TextAnswer

HALF = "\ufffd"
"""What decoders write for bytes that are no character, or not one yet."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more tokens of a text that is being made."""

    tokens: tuple[int, ...]
    text: str
    """What they add to the text so far: "" where a character is not complete yet."""


class IncrementalDetokenizer:
    """One row's text. The pieces' texts, put together, are the whole text.

    Args:
        decode: the tokenizer's: ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._told = ""

    def more(self, tokens: Sequence[int]) -> Piece | None:
        """The piece of some more tokens; None without any."""
        if not tokens:
            return None
        self._tokens += tokens
        return Piece(tuple(tokens), self._grow(self._decode(self._tokens).rstrip(HALF)))

    def rest(self, tokens: Sequence[int], text: str) -> Piece | None:
        """What is missing to the whole text and all its tokens; None where nothing is."""
        missing = tuple(tokens[len(self._tokens) :])
        self._tokens += missing
        grown = self._grow(text)
        return Piece(missing, grown) if missing or grown else None

    def _grow(self, text: str) -> str:
        if not text.startswith(self._told):  # it is about to change: wait for what it becomes
            return ""
        grown, self._told = text[len(self._told) :], text
        return grown


FinishReason = Literal["end", "length"]
"""Whether the task ended the text, or its limit did."""


class TextProgress:
    """
    Args:
        limit: tokens that the text may have.
    """

    def __init__(self, limit: int) -> None:
        self.text, self.tokens, self._limit = "", 0, limit

    @property
    def finish_reason(self) -> FinishReason:
        """Once all is told."""
        return "length" if self.tokens >= self._limit else "end"

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += len(piece.tokens)

    def rest(self, answer: TextAnswer) -> Piece | None:
        """What the pieces lack of the whole: everything, where it was not made token by token."""
        tokens = answer.tokens[self.tokens :]
        text = answer.text[len(self.text) :] if answer.text.startswith(self.text) else ""
        return Piece(tokens, text) if tokens or text else None
