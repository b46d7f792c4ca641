"""Rows that were submitted, bundled by their tokens and images, and what has become of them. No torch.

Rows of one request with the same tokens and images are a bundle (a row that must not be shared is one of its own). A
bundle is never split, so that many tasks on one input cost one backbone pass. `index` is a row's position in its
request.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Protocol

from serving.engine import Piece
from serving.errors import DeadlineExpired
from serving.tracing import rows_trace

Outcome = Any
"""An answer, or the exception in its place."""

Event = Any
"""A Piece of a text, an answer, or an exception. All but a Piece end the row."""

Deliver = Callable[[Sequence[tuple[Any, Event]]], None]
"""Takes (row, event) pairs; called several times in a step, on the device thread."""

OnStarted = Callable[[Sequence[int]], None]
"""Takes the indices of a request's rows that go to the device."""


def ignore_started(indices: Sequence[int]) -> None:
    """An OnStarted that does nothing."""


@contextlib.asynccontextmanager
async def within(deadline: float | None) -> AsyncIterator[None]:
    """Raise DeadlineExpired if the block is not through by the deadline, in time.monotonic() seconds."""
    try:
        async with asyncio.timeout_at(deadline) as limit:  # an event loop's clock is time.monotonic()
            yield
    except TimeoutError:
        if limit.expired():
            raise DeadlineExpired() from None
        raise


class Row(Protocol):
    """One input for one task. Identity tells rows apart; the same object is never submitted twice."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens."""
        ...

    @property
    def task(self) -> str:
        """The task that is charged for it."""
        ...

    @property
    def salt(self) -> str:
        """Rows of different salts share nothing, even with the same tokens."""
        ...

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names of the images that it reads besides the text."""
        ...

    @property
    def image_work(self) -> int:
        """Tokens that its images count as, besides its own."""
        ...

    @property
    def weight(self) -> int:
        """Rows of a batch that it counts as: each beam is one."""
        ...

    @property
    def alone(self) -> bool:
        """It is not bundled with rows of the same tokens: each of them is sampled by itself."""
        ...

    @property
    def generates(self) -> bool:
        """Its answer is a text: it stays on the device for many steps."""
        ...


class Worker(Protocol):
    """What runs on the device thread. Its method is called on that thread only, one step at a time."""

    def step(self, rows: Sequence[Any], cancelled: Sequence[Any], deliver: Deliver) -> bool:
        """Begin new rows, and take every running text one token on.

        Every row gets one event that ends it, in this step or a later one, unless it is in `cancelled` before.

        Args:
            rows: new ones.
            cancelled: rows of earlier steps that no caller waits for any more. Those that have ended are ignored.
            deliver: takes each row's events.
        Returns:
            Whether something is still running, so that another step is needed.
        """
        ...


class Bundle:
    """Rows of one request that have the same tokens and images.

    Args:
        indices: of the rows in the request.
    """

    __slots__ = (
        "cost", "indices", "input", "length", "number", "owner", "request", "running", "shares", "tokens", "uses",
        "weight",
    )  # fmt: skip

    def __init__(self, request: "Request", indices: list[int]) -> None:
        rows = [request.rows[index] for index in indices]
        self.request = request
        self.indices = indices
        self.length = len(rows[0].ids)
        """Tokens of the one row that the backbone computes, without padding."""
        self.tokens = self.length + sum([row.image_work for row in rows])
        """That it is charged and counts as where time is estimated."""
        self.input = hash((rows[0].salt, rows[0].ids))
        """Equal for equal inputs. Two different inputs of one length have the same hash practically never."""
        self.weight = sum(row.weight for row in rows)
        """Rows of a batch that it counts as."""
        self.running = sum(row.weight for row in rows if row.generates)
        """Weight of the rows that generate a text, and so stay on the device."""
        self.uses: dict[str, tuple[int, int]] = by_task(rows)
        """Task to the weight and the tokens of its rows."""
        self.shares: dict[str, float] = {}
        """Task to the tokens that it is charged: the input's are divided among the rows, its images' are its own."""
        for row in rows:
            self.shares[row.task] = self.shares.get(row.task, 0.0) + self.length / len(rows) + row.image_work
        self.number = 0
        """Order of joining the queue."""
        self.owner = rows[0].task
        """Task in whose line it waits, see `fair_queue`."""
        self.cost = 0.0
        """Tokens that the line is charged for it."""


def by_task(rows: Iterable[Row]) -> dict[str, tuple[int, int]]:
    """Task to the weight and the tokens of its rows."""
    uses: dict[str, tuple[int, int]] = {}
    for row in rows:
        weight, tokens = uses.get(row.task, (0, 0))
        uses[row.task] = (weight + row.weight, tokens + len(row.ids) + row.image_work)
    return uses


class Request:
    """Rows that were submitted together: where they wait, and what has become of them.

    Subclasses pass events on: `_on_event` for a row's event, `_on_failure` for an error of the whole request.

    Args:
        deadline: in the seconds of the event loop's clock.
        arrived: in the same seconds.
    """

    is_shadow = False
    """Whether no caller waits for it."""

    def __init__(self, rows: Sequence[Row], deadline: float | None, priority: int, arrived: float) -> None:
        self.rows = rows
        self.deadline = deadline
        self.priority = priority
        self.arrived = arrived
        self.left = len(rows)
        """Rows without an outcome."""
        self.is_over = False
        """All rows have ended, or no caller waits for it any more."""
        self.trace = rows_trace()
        """Of the caller's request; None where it is not traced."""
        self.bundles: list[Bundle] = []
        self.on_started: OnStarted = ignore_started

    def bundle(self, indices: Iterable[int]) -> None:
        """Bundle the rows at these indices: those that are to be computed."""
        alike: dict[object, list[int]] = {}
        for index in indices:
            row = self.rows[index]
            alike.setdefault(index if row.alone else (row.salt, row.ids, row.image_names), []).append(index)
        self.bundles = [Bundle(self, equal) for equal in alike.values()]

    def settle(self, index: int, event: Event) -> None:
        """Take an event of one row: a piece of its text, or its end."""
        if self.is_over:
            return
        if not isinstance(event, Piece):
            self.left -= 1
            self.is_over = not self.left
        self._on_event(index, event)

    def fail(self, error: Exception) -> None:
        """End it with an error of the whole request, if it has not ended yet."""
        if not self.is_over:
            self.is_over = True
            self._on_failure(error)

    def _on_event(self, index: int, event: Event) -> None:
        raise NotImplementedError

    def _on_failure(self, error: Exception) -> None:
        raise NotImplementedError


class ListRequest(Request):
    """Its outcomes come as one list, in the rows' order, when all are there. Create it on an event loop."""

    def __init__(self, rows: Sequence[Row], deadline: float | None, priority: int, arrived: float) -> None:
        super().__init__(rows, deadline, priority, arrived)
        self._outcomes: list[Outcome] = [None] * len(rows)
        self._future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

    def _on_event(self, index: int, event: Event) -> None:
        if not isinstance(event, Piece):
            self._outcomes[index] = event
        if self.is_over and not self._future.done():
            self._future.set_result(self._outcomes)

    def _on_failure(self, error: Exception) -> None:
        if not self._future.done():
            self._future.set_exception(error)

    async def outcomes(self) -> list[Outcome]:
        """Wait for all outcomes.

        Raises:
            DeadlineExpired: not all are there at the deadline. Or the error of the whole request.
        """
        expiry = None
        if self.deadline is not None:
            expiry = asyncio.get_running_loop().call_at(self.deadline, self.fail, DeadlineExpired())
        try:
            return await self._future
        finally:
            if expiry is not None:
                expiry.cancel()
            del self._future  # else it holds an error, whose traceback holds the frames that hold this request


class StreamRequest(Request):
    """One row, whose events come one by one."""

    def __init__(self, row: Row, deadline: float | None, priority: int, arrived: float) -> None:
        super().__init__([row], deadline, priority, arrived)
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def _on_event(self, index: int, event: Event) -> None:
        self._events.put_nowait(event)

    def _on_failure(self, error: Exception) -> None:
        self._events.put_nowait(error)

    async def next(self) -> Event:
        """Wait for the next event: a piece, or what ends the row.

        Raises:
            DeadlineExpired: it is not there at the deadline.
        """
        async with within(self.deadline):
            return await self._events.get()


class ShadowRequest(Request):
    """Rows of one version that are answered for a comparison, when the device has nothing else to do.

    Subclasses take each row's outcome (`_on_event`), and how many rows were dropped (`_on_dropped`).
    """

    is_shadow = True

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__(rows, None, 0, 0.0)
        self.trace = None

    @property
    def is_wanted(self) -> bool:
        """Whether its answers would still be compared."""
        return True

    def drop(self, rows: int | None = None) -> None:
        """Give up this many rows; None: all that have no outcome yet."""
        dropped = self.left if rows is None else rows
        if dropped and not self.is_over:
            self.left -= dropped
            self.is_over = not self.left
            self._on_dropped(dropped)

    def add_device_time(self, seconds: float) -> None:
        """Count its share of a step's time."""
        raise NotImplementedError

    def check_step_time(self, seconds: float) -> None:
        """Take the whole time of a step that had some of its rows."""
        raise NotImplementedError

    def _on_dropped(self, rows: int) -> None:
        raise NotImplementedError

    def _on_failure(self, error: Exception) -> None:
        self._on_dropped(self.left)
