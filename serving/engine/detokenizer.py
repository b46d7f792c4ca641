"""Incremental detokenization: the pieces of a text while it is decoded.

A character may take several tokens, and the text of a token may depend on those before it. So all tokens so far are
decoded each time, and a piece is what the text grew by, without bytes that are no whole character yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ladder.answers import TextAnswer

HALF = "\ufffd"
"""What tokenizers decode bytes to that are no character, or not one yet."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more tokens of a text that is being decoded."""

    tokens: tuple[int, ...]
    text: str
    """What they add to the text so far; "" where a character is not complete yet."""


class IncrementalDetokenizer:
    """Makes the pieces of one row's text. Their texts, joined, are the whole text.

    Args:
        decode: the tokenizer's: ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._sent = ""

    def more(self, tokens: Sequence[int]) -> Piece | None:
        """Make the piece of some more tokens; None without any."""
        if not tokens:
            return None
        self._tokens += tokens
        return Piece(tuple(tokens), self._grow(self._decode(self._tokens).rstrip(HALF)))

    def rest(self, tokens: Sequence[int], text: str) -> Piece | None:
        """Make the last piece: what is missing from the whole text and its tokens; None where nothing is missing."""
        missing = tuple(tokens[len(self._tokens) :])
        self._tokens += missing
        grown = self._grow(text)
        return Piece(missing, grown) if missing or grown else None

    def _grow(self, text: str) -> str:
        if not text.startswith(self._sent):  # the tokenizer changed earlier text: wait for the next tokens
            return ""
        grown = text[len(self._sent) :]
        self._sent = text
        return grown


FinishReason = Literal["end", "length"]
"""Whether the end token ended the text, or the limit of tokens did."""


class TextProgress:
    """Progress of one streamed text: what was sent, and what is missing from the whole.

    Args:
        limit: most tokens of the text.
    """

    def __init__(self, limit: int) -> None:
        self.text = ""
        self.tokens = 0
        self._limit = limit

    @property
    def finish_reason(self) -> FinishReason:
        """Why the text ended; valid once everything was sent."""
        return "length" if self.tokens >= self._limit else "end"

    def add(self, piece: Piece) -> None:
        """Note a piece that was sent."""
        self.text += piece.text
        self.tokens += len(piece.tokens)

    def rest(self, answer: TextAnswer) -> Piece | None:
        """Make the last piece: what is missing from the whole, or all of it after a beam search. None: nothing."""
        tokens = answer.tokens[self.tokens :]
        text = answer.text[len(self.text) :] if answer.text.startswith(self.text) else ""
        return Piece(tokens, text) if tokens or text else None
