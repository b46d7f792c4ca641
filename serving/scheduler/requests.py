"""Rows that were submitted, bundled by their tokens, and what has become of them. No clocks, no torch.

Rows of one request with the same tokens are a bundle (a row that stands alone is one of its own). It is never split, so
that many tasks on one input cost one backbone pass.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from serving.engine import Piece

Outcome = Any
"""An answer, or the exception in its place."""


OnStarted = Callable[[Sequence[int]], None]


def ignore_started(places: Sequence[int]) -> None:
    pass


class Row(Protocol):
    """Told apart by identity; the same object is never submitted twice."""

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def task(self) -> str:
        """Whose share of the device it uses."""
        ...

    @property
    def salt(self) -> str:
        """Inputs of different salts have nothing in common, even with the same tokens."""
        ...

    @property
    def weight(self) -> int:
        """Rows of a batch that it counts as."""
        ...

    @property
    def alone(self) -> bool:
        """Not bundled with others of the same tokens, of which one request may have any number."""
        ...

    @property
    def generates(self) -> bool:
        """It makes a text: it stays on the device for many turns."""
        ...


class Bundle:
    """Rows of one request that have the same tokens."""

    __slots__ = (
        "cost", "input", "number", "owner", "places", "request", "running", "shares", "tokens", "uses", "weight",
    )  # fmt: skip

    def __init__(self, request: "Request", places: list[int]) -> None:
        rows = [request.rows[place] for place in places]
        self.request, self.places = request, places
        self.tokens = len(rows[0].ids)
        """Of the backbone's one row, without padding."""
        self.input = hash((rows[0].salt, rows[0].ids))
        """Equal for equal inputs; others of the same length have the same one about never."""
        self.weight = sum(row.weight for row in rows)
        """Rows of a batch that it counts as."""
        self.running = sum(row.weight for row in rows if row.generates)
        """Of these, the ones that stay on the device."""
        self.uses: dict[str, tuple[int, int]] = by_task(rows)
        """What each of its tasks has in it: the weight and the tokens of its rows."""
        self.shares: dict[str, float] = {task: tokens / len(rows) for task, (_, tokens) in self.uses.items()}
        """Tokens that each of its tasks is charged: the bundle's tokens, shared out among its rows."""
        self.number, self.owner, self.cost = 0, rows[0].task, 0.0
        """When it joined the queue, in whose line it waits, and what that line is charged: see `fair_queue`."""


def by_task(rows: Iterable[Row]) -> dict[str, tuple[int, int]]:
    """Task to the weight and the tokens of its rows."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        weight, tokens = found.get(row.task, (0, 0))
        found[row.task] = (weight + row.weight, tokens + len(row.ids))
    return found


class Request:
    """Rows that were submitted together: where they wait, and what has become of them."""

    is_shadow = False
    """Nobody waits for it."""

    def __init__(self, rows: Sequence[Row], deadline: float | None, priority: int, arrived: float) -> None:
        self.rows, self.deadline, self.priority, self.arrived = rows, deadline, priority, arrived
        self.left = len(rows)
        """Rows without an outcome."""
        self.is_over = False
        """All answered, failed, or nobody waits for it any more."""
        self.bundles: list[Bundle] = []
        self.begun: OnStarted = ignore_started
        """Told of the places of its rows that go to the device."""

    def bundle(self, places: Iterable[int]) -> None:
        """Bundle the rows at these places, which are to be computed."""
        alike: dict[object, list[int]] = {}
        for place in places:
            row = self.rows[place]
            alike.setdefault(place if row.alone else (row.salt, row.ids), []).append(place)
        self.bundles = [Bundle(self, own) for own in alike.values()]

    def settle(self, place: int, event: Any) -> None:
        """Take what became of one row: a piece of its text, or its end."""
        if self.is_over:
            return
        if not isinstance(event, Piece):
            self.left -= 1
            self.is_over = not self.left
        self._tell(place, event)

    def fail(self, error: Exception) -> None:
        """End it with an error of the whole request, if it has not ended yet."""
        if not self.is_over:
            self.is_over = True
            self._tell_failure(error)

    def _tell(self, place: int, event: Any) -> None:
        raise NotImplementedError

    def _tell_failure(self, error: Exception) -> None:
        raise NotImplementedError


class ListRequest(Request):
    """Its outcomes come as one list, in the rows' order, when all are there."""

    def __init__(self, rows: Sequence[Row], deadline: float | None, priority: int, arrived: float) -> None:
        super().__init__(rows, deadline, priority, arrived)
        self._outcomes: list[Outcome] = [None] * len(rows)
        self._future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

    def _tell(self, place: int, event: Any) -> None:
        if not isinstance(event, Piece):
            self._outcomes[place] = event
        if self.is_over and not self._future.done():
            self._future.set_result(self._outcomes)

    def _tell_failure(self, error: Exception) -> None:
        if not self._future.done():
            self._future.set_exception(error)

    async def outcomes(self) -> list[Outcome]:
        return await self._future


class StreamRequest(Request):
    """One row, told as it comes."""

    def __init__(self, row: Row, deadline: float | None, priority: int, arrived: float) -> None:
        super().__init__([row], deadline, priority, arrived)
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    def _tell(self, place: int, event: Any) -> None:
        self._events.put_nowait(event)

    def _tell_failure(self, error: Exception) -> None:
        self._events.put_nowait(error)

    async def next(self) -> Any:
        """A piece, or what ends it: the answer or an exception."""
        return await self._events.get()


class ShadowRequest(Request):
    """Rows of one version that are answered beside callers', when the device has nothing else to do.

    What becomes of each row is told at once: an outcome, or that it was dropped.

    Args:
        version: whose rows these are: a key that is equal for equal versions.
        apart: not in one turn with rows of other versions.
    """

    is_shadow = True

    def __init__(self, rows: Sequence[Row], version: object, *, apart: bool = False) -> None:
        super().__init__(rows, None, 0, 0.0)
        self.version, self.apart = version, apart

    @property
    def is_wanted(self) -> bool:
        """Somebody still compares its answers."""
        return True

    def drop(self, rows: int | None = None) -> None:
        """Some rows, or all that have no outcome yet, get none."""
        dropped = self.left if rows is None else rows
        if dropped and not self.is_over:
            self.left -= dropped
            self.is_over = not self.left
            self._tell_dropped(dropped)

    def spent(self, seconds: float) -> None:
        """So much time on the device was theirs."""
        raise NotImplementedError

    def took(self, seconds: float, alone: bool) -> None:
        """A turn that had nothing but rows in shadow took so long, some of these among them.

        Args:
            alone: no other version had rows in it.
        """
        raise NotImplementedError

    def _tell_dropped(self, rows: int) -> None:
        raise NotImplementedError

    def _tell_failure(self, error: Exception) -> None:
        self._tell_dropped(self.left)


Event = Any
"""A Piece, an answer, or an exception. All but a Piece end the row."""
Deliver = Callable[[Sequence[tuple[Any, Event]]], None]
"""Told of (row, event), several times a turn, on the device thread."""
Predict = Callable[[list[Any]], Sequence[Any]]
"""Rows to their outcomes, one for each, in their order."""


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
