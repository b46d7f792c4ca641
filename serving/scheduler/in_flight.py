"""The rows that the device thread has, and the requests that their events go to. Lives on the event loop."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from serving.engine import Piece
from serving.scheduler.requests import Bundle, Event, Request, Row, ShadowRequest


@dataclass(frozen=True, slots=True)
class InFlightRow:
    """One row on the device, and its index in its request."""

    row: Row
    request: Request
    index: int
    since: float
    """When it began."""


class InFlight:
    """Rows on the device, from the step that begins them until they end, or a step is told that they are cancelled.

    Args:
        on_text_end: called for each caller's text that leaves the device without an error, with whether it is complete.
    """

    def __init__(self, on_text_end: Callable[[InFlightRow, bool], None]) -> None:
        self._on_text_end = on_text_end
        self._rows: dict[int, InFlightRow] = {}
        """By the row's id()."""
        self._cancelled: set[int] = set()
        self.running = 0
        """Weight of callers' rows that generate texts."""
        self.running_shadows = 0
        """Weight of shadow rows that generate texts."""
        self.busy = False
        """Whether the worker needs another step."""

    def __bool__(self) -> bool:
        """Whether a step is needed."""
        return self.busy or bool(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def has_cancelled(self) -> bool:
        """Whether the next step has cancelled rows to free."""
        return bool(self._cancelled)

    def texts(self) -> Iterator[InFlightRow]:
        """Callers' rows that generate texts."""
        return (entry for entry in self._rows.values() if entry.row.generates and not entry.request.is_shadow)

    def shadows(self) -> dict[ShadowRequest, int]:
        """Shadow requests to how many of their rows are on the device."""
        return Counter(entry.request for entry in self._rows.values() if isinstance(entry.request, ShadowRequest))

    def begin(self, batch: Sequence[Bundle], now: float) -> list[Row]:
        """Take over the batch's rows, and return them for the worker."""
        begun = [
            InFlightRow(bundle.request.rows[index], bundle.request, index, now)
            for bundle in batch
            for index in bundle.indices
        ]
        self._rows.update((id(entry.row), entry) for entry in begun)
        for bundle in batch:
            bundle.request.on_started(bundle.indices)
        for entry in begun:
            self._count(entry, 1)
        return [entry.row for entry in begun]

    def settle(self, events: Sequence[tuple[Row, Event]]) -> None:
        """Pass events on to their requests. Events of rows that were cancelled meanwhile are ignored."""
        for row, event in events:
            entry = self._rows.get(id(row))
            if entry is None:
                continue
            if not isinstance(event, Piece):
                self._remove(entry)
                if not isinstance(event, Exception):
                    self._note_text_end(entry, True)
            entry.request.settle(entry.index, event)

    def end_step(self, busy: bool) -> None:
        """Take what the step returned. Rows that the worker has lost end with an error, so that no caller hangs."""
        self.busy = busy
        if not busy and self._rows:
            self.fail(RuntimeError(f"the device ended {len(self._rows)} rows without an outcome"))

    def fail(self, error: Exception) -> None:
        """End all rows with this error: the worker has forgotten them."""
        self.busy = False
        self.settle([(entry.row, error) for entry in self._rows.values()])

    def cancel(self, request: Request) -> None:
        """Have the next step free this request's rows."""
        keys = (id(row) for row in request.rows)
        self._cancelled.update(key for key in keys if key in self._rows)

    def abort_shadows(self) -> None:
        """Drop all shadow rows, and have the next step free them."""
        for request, rows in self.shadows().items():
            request.drop(rows)
            self.cancel(request)

    def take_cancelled(self) -> list[Row]:
        """Remove the rows that were cancelled since the last step and have not ended; the next step frees them."""
        cancelled = [self._rows[key] for key in self._cancelled]
        for entry in cancelled:
            self._remove(entry)
            self._note_text_end(entry, False)
        return [entry.row for entry in cancelled]

    def _remove(self, entry: InFlightRow) -> None:
        del self._rows[id(entry.row)]
        self._cancelled.discard(id(entry.row))
        self._count(entry, -1)

    def _note_text_end(self, entry: InFlightRow, whole: bool) -> None:
        if entry.row.generates and not entry.request.is_shadow:
            self._on_text_end(entry, whole)

    def _count(self, entry: InFlightRow, sign: int) -> None:
        weight = sign * entry.row.weight if entry.row.generates else 0
        if entry.request.is_shadow:
            self.running_shadows += weight
        else:
            self.running += weight
