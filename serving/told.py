"""What has been told of one text while it is made. Knows no rows, no tasks, no streams."""

from typing import Literal

from ladder.answers import TextAnswer
from serving.pieces import Piece

FinishReason = Literal["end", "length"]
"""Whether the task ended the text, or its limit did."""


class Told:
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
