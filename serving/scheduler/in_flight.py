"""The rows that the device thread has, and to whom what becomes of them is told. Lives on the event loop."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serving.engine import Piece
from serving.scheduler.requests import Bundle, Request, Row, ShadowRequest


@dataclass(frozen=True, slots=True)
class InFlightRow:
    """One row on the device, and its place in its request."""

    row: Row
    request: Request
    place: int
    since: float
    """When it began."""


class InFlight:
    """Rows by identity, from the turn that begins them to their end, or until a turn is told that they are gone.

    Args:
        ended: told of each caller's text that leaves the device without an error, and whether it came to its end.
    """

    def __init__(self, ended: Callable[[InFlightRow, bool], None]) -> None:
        self._ended = ended
        self._held: dict[int, InFlightRow] = {}
        self._leaving: set[int] = set()
        self.running = self.running_shadows = 0
        """Weight of those that make texts, for callers and in shadow."""
        self.busy = False
        """The worker wants another turn."""

    def __bool__(self) -> bool:
        return self.busy or bool(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def has_gone(self) -> bool:
        """Some are to be told of to the next turn."""
        return bool(self._leaving)

    def texts(self) -> Iterator[InFlightRow]:
        """Those of callers."""
        return (held for held in self._held.values() if held.row.generates and not held.request.is_shadow)

    def shadows(self) -> dict[ShadowRequest, int]:
        """Requests in shadow, and how many of their rows are here."""
        return Counter(held.request for held in self._held.values() if isinstance(held.request, ShadowRequest))

    def begin(self, batch: Sequence[Bundle], now: float) -> list[Row]:
        """The batch's rows, which are on the device from now on."""
        places = [(bundle.request, place) for bundle in batch for place in bundle.places]
        begun = [InFlightRow(request.rows[place], request, place, now) for request, place in places]
        self._held.update((id(held.row), held) for held in begun)
        for bundle in batch:
            bundle.request.begun(bundle.places)
        for held in begun:
            self._count(held, 1)
        return [held.row for held in begun]

    def settle(self, events: Sequence[tuple[Row, Any]]) -> None:
        """Tell what became of rows. Those that were left meanwhile are nobody's any more."""
        for row, event in events:
            if held := self._held.get(id(row)):
                if not isinstance(event, Piece):
                    self._drop(held)
                    if not isinstance(event, Exception):
                        self._end(held, True)
                held.request.settle(held.place, event)

    def end_turn(self, busy: bool) -> None:
        """`busy` is what the turn returned. Rows that a worker has lost end with an error instead of never."""
        self.busy = busy
        if not busy and self._held:
            self.fail(RuntimeError(f"the device ended {len(self._held)} rows without an outcome"))

    def fail(self, error: Exception) -> None:
        """All rows end with this error: the worker has forgotten them."""
        self.busy = False
        self.settle([(held.row, error) for held in self._held.values()])

    def leave(self, request: Request) -> None:
        """Nobody waits for this request any more."""
        keys = (id(row) for row in request.rows)
        self._leaving.update(key for key in keys if key in self._held)

    def take_gone(self) -> list[Row]:
        """What left since the last turn and has not ended; the next turn frees its slots."""
        gone = [self._held[key] for key in self._leaving]
        for held in gone:
            self._drop(held)
            self._end(held, False)
        return [held.row for held in gone]

    def _drop(self, held: InFlightRow) -> None:
        del self._held[id(held.row)]
        self._leaving.discard(id(held.row))
        self._count(held, -1)

    def _end(self, held: InFlightRow, whole: bool) -> None:
        if held.row.generates and not held.request.is_shadow:
            self._ended(held, whole)

    def _count(self, held: InFlightRow, sign: int) -> None:
        weight = sign * held.row.weight if held.row.generates else 0
        if held.request.is_shadow:
            self.running_shadows += weight
        else:
            self.running += weight
