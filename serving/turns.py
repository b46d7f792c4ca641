"""What the batcher asks of the device thread: turns. Knows no torch.

A turn answers new rows, lets rows that make texts join those that are running, and takes every running text one token
on. Whatever becomes known of a row is delivered at once: pieces of its text, and last its answer or its own exception.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from serving.pieces import Piece
from serving.row_queue import Row

Event = Any
"""A Piece, an answer, or an exception. All but a Piece end the row."""
Deliver = Callable[[Sequence[tuple[Any, Event]]], None]
"""Told of (row, event), several times a turn, on the device thread."""
Predict = Callable[[list[Any]], Sequence[Any]]
"""Rows to their outcomes, one for each, in their order."""

__all__ = ["Deliver", "Event", "Piece", "Predict", "Worker", "worker_of"]


class Worker(Protocol):
    """Called on the device thread only, one turn at a time."""

    def turn(self, rows: Sequence[Any], gone: Sequence[Any], deliver: Deliver) -> bool:
        """Every row gets one event that ends it, in this turn or a later one, unless it is in `gone` before.

        Args:
            rows: new ones.
            gone: rows of earlier turns that nobody waits for any more. Those that have ended are to be ignored.
        Returns:
            Whether something is still running, so that another turn is needed.
        """
        ...


class AnswersAtOnce:
    """A worker whose rows are all answered within their turn, by a function of rows to outcomes."""

    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    def turn(self, rows: Sequence[Row], gone: Sequence[Row], deliver: Deliver) -> bool:
        if not rows:
            return False
        outcomes = self._predict(list(rows))
        if len(outcomes) != len(rows):
            raise RuntimeError(f"{len(rows)} rows in, {len(outcomes)} outcomes out")
        deliver(list(zip(rows, outcomes, strict=True)))
        return False


def worker_of(given: Worker | Predict) -> Worker:
    """A function of rows to outcomes is as good as a worker."""
    return given if hasattr(given, "turn") else AnswersAtOnce(given)  # type: ignore[return-value, arg-type]
