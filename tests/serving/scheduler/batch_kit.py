"""Rows, workers, devices and a virtual clock for tests of the batcher. Nothing here computes or waits."""

import asyncio
import random
import selectors
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.config import BatchConfig, LimitConfig
from serving.engine.detokenizer import Piece
from serving.errors import DeadlineExpired, Shed
from serving.metrics import Metrics
from serving.scheduler.batcher import Batcher
from serving.scheduler.requests import Bundle, Deliver, Request

Result = TypeVar("Result")


@dataclass(frozen=True)
class FakeRow:
    """A row with the fields that the batcher reads."""

    ids: tuple[int, ...]
    task: str = "sst2"
    weight: int = 1
    alone: bool = False
    salt: str = ""
    steps: int = 0
    """Number of steps of its text; 0: it makes no text."""
    streams: bool = False
    image_names: tuple[str, ...] = ()
    image_work: int = 0

    @property
    def generates(self) -> bool:
        return self.steps > 0


def row(length: int, first: int = 0, task: str = "sst2", **changes: Any) -> FakeRow:
    return FakeRow((first, *range(1, length)), task, **changes)


def bundles_of(rows: Sequence[FakeRow], priority: int = 2) -> list[Bundle]:
    request = Request(rows, None, priority, 0.0)
    request.bundle(range(len(rows)))
    return request.bundles


class Writer:
    """A worker that answers a row with itself, at once or at the end of its text. Pieces are numbers.

    Records every step, and checks that no row comes twice and not too many texts run.
    """

    def __init__(self, most: int = 10**9) -> None:
        self.steps: list[tuple[list[FakeRow], list[FakeRow]]] = []
        """(new rows, cancelled rows) of every step."""
        self.running: dict[int, FakeRow] = {}
        self.most_running = 0
        self._made: dict[int, int] = {}
        self._known: dict[int, FakeRow] = {}
        self._most = most

    @property
    def batches(self) -> list[list[FakeRow]]:
        return [rows for rows, _ in self.steps if rows]

    def step(self, rows: Sequence[FakeRow], cancelled: Sequence[FakeRow], deliver: Deliver) -> bool:
        self.steps.append((list(rows), list(cancelled)))
        for row in cancelled:
            self.running.pop(id(row), None)
        for row in rows:
            assert id(row) not in self._known, "the same row twice"
            self._known[id(row)] = row
        self._join([row for row in rows if row.generates])
        deliver([(row, row) for row in rows if not row.generates])
        for text in list(self.running.values()):
            self._extend(text, deliver)
        return bool(self.running)

    def _join(self, texts: Sequence[FakeRow]) -> None:
        for text in texts:
            self.running[id(text)] = text
            self._made[id(text)] = 0
        weight = sum(text.weight for text in self.running.values())
        assert weight <= self._most or len(self.running) == 1, "more texts than allowed"
        self.most_running = max(self.most_running, weight)

    def _extend(self, text: FakeRow, deliver: Deliver) -> None:
        self._made[id(text)] += 1
        if text.streams:
            deliver([(text, Piece((self._made[id(text)],), f"{self._made[id(text)]} "))])
        if self._made[id(text)] == text.steps:
            del self.running[id(text)]
            deliver([(text, text)])


class AnswersAtOnce:
    """A worker that answers all rows within their step, by a function from rows to outcomes."""

    def __init__(self, predict: Callable[[list[Any]], Sequence[Any]]) -> None:
        self._predict = predict

    def step(self, rows: Sequence[Any], cancelled: Sequence[Any], deliver: Deliver) -> bool:
        if rows:
            deliver(list(zip(rows, self._predict(list(rows)), strict=True)))
        return False


class Device:
    """Answers a row with itself. After `busy`, it holds a batch until `open`."""

    def __init__(self) -> None:
        self.batches: list[list[FakeRow]] = []
        self.threads: set[str] = set()
        self._open, self._entered = threading.Event(), threading.Event()
        self._open.set()

    def predict(self, rows: list[FakeRow]) -> list[FakeRow]:
        self.batches.append(rows)
        self.threads.add(threading.current_thread().name)
        self._entered.set()
        assert self._open.wait(60)
        return rows

    async def busy(self, batcher: Batcher) -> "asyncio.Task[list[FakeRow]]":
        """Occupy the device with one row until `open`."""
        self._open.clear()
        self._entered.clear()
        task = asyncio.create_task(batcher.submit([row(1, first=999)]))
        assert await asyncio.to_thread(self._entered.wait, 60)
        self.batches.clear()
        return task

    def open(self) -> None:
        self._open.set()


class _Jumping(selectors.DefaultSelector):
    """A selector that advances the clock instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("everything waits, and nothing is due")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with virtual time: a wait takes no real time."""

    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def virtually(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on a `VirtualLoop`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class TimedDevice(Executor):
    """Runs steps on a virtual loop: a step returns after `seconds(rows)` of virtual time."""

    def __init__(self, seconds: Callable[[Sequence[FakeRow]], float]) -> None:
        self._seconds = seconds
        self.busy_s = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        seconds = self._seconds(args[0])
        self.busy_s += seconds
        asyncio.get_running_loop().call_later(seconds, finish, future, fn, args)
        return future


class StepDevice(Executor):
    """Holds a step until `take` runs it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __bool__(self) -> bool:
        """Whether a step is held."""
        return bool(self._waiting)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._waiting.append((future, fn, args))
        assert len(self._waiting) == 1, "two steps at a time"
        return future

    def take(self) -> None:
        finish(*self._waiting.pop())


def finish(future: "Future[Any]", work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        future.set_result(work(*args))
    except Exception as error:
        future.set_exception(error)


SETTINGS: dict[str, Any] = {
    "max_batch_tokens": 1000, "max_batch_rows": 8, "max_wait_s": 0.0, "max_queued_rows": 100,
}  # fmt: skip


def make(
    worker: Any,
    metrics: Metrics | None = None,
    limits: LimitConfig | None = None,
    device: Executor | None = None,
    **changes: Any,
) -> Batcher:
    """Make a batcher with SETTINGS and `changes`."""
    return Batcher(worker, BatchConfig(**SETTINGS | changes), metrics, limits, device)


async def settled() -> None:
    """Run the event loop until nothing can happen without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


BATCH_S, TOKEN_S = 0.020, 0.001


def step_s(rows: Sequence[FakeRow]) -> float:
    """Seconds of a step: proportional to tokens with padding, plus a constant."""
    return BATCH_S + TOKEN_S * len(rows) * max((len(row.ids) for row in rows), default=0)


class Load:
    """Sends requests of one row at a steady rate, and counts their outcomes."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.outcomes: Counter[str] = Counter()
        self.by_task: Counter[str] = Counter()
        self.waits: dict[str, list[float]] = {}

    async def one(self, row: FakeRow, within_s: float | None, **how: Any) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            await self._batcher.submit([row], deadline=within_s and begun + within_s, **how)
        except (Shed, DeadlineExpired) as error:
            self.outcomes[error.reason] += 1
        else:
            self.outcomes["OK"] += 1
            self.by_task[row.task] += 1
            self.waits.setdefault(row.task, []).append(loop.time() - begun)

    async def run(self, rows: Iterable[FakeRow], gap_s: float, within_s: float | None = None, **how: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(self.one(row, within_s, **how))
                await asyncio.sleep(gap_s)


def stream_of(count: int, task: str = "sst2", low: int = 10, high: int = 10, seed: int = 0) -> list[FakeRow]:
    """Return `count` rows of one task with random lengths from `low` to `high`."""
    draw = random.Random(seed)
    return [row(draw.randint(low, high), n, task) for n in range(count)]
