"""Rows, devices and a clock for tests of the batcher: nothing here computes, and virtual time costs none."""

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.config import BatchConfig, LimitConfig
from serving.engine.detokenizer import Piece
from serving.metrics import Metrics
from serving.scheduler.batcher import Batcher
from serving.scheduler.requests import Bundle, Deliver, Request

Result = TypeVar("Result")


@dataclass(frozen=True)
class FakeRow:
    ids: tuple[int, ...]
    task: str = "sst2"
    weight: int = 1
    alone: bool = False
    salt: str = ""
    steps: int = 0
    """Turns that its text takes; 0: it makes none."""
    streams: bool = False

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
    """A worker that answers a row with itself: at once, or at the end of its text, whose pieces are numbered.

    Keeps what it was given, turn by turn, and that the batcher keeps to the rules.
    """

    def __init__(self, most: int = 10**9) -> None:
        self.turns: list[tuple[list[FakeRow], list[FakeRow]]] = []
        """New rows and gone ones."""
        self.running: dict[int, FakeRow] = {}
        self.most_running = 0
        self._made: dict[int, int] = {}
        self._known: dict[int, FakeRow] = {}
        self._most = most

    @property
    def batches(self) -> list[list[FakeRow]]:
        return [rows for rows, _ in self.turns if rows]

    def turn(self, rows: Sequence[FakeRow], gone: Sequence[FakeRow], deliver: Deliver) -> bool:
        self.turns.append((list(rows), list(gone)))
        for each in gone:
            self.running.pop(id(each), None)
        for each in rows:
            assert id(each) not in self._known, "the same row twice"
            self._known[id(each)] = each
        self._join([each for each in rows if each.generates])
        deliver([(each, each) for each in rows if not each.generates])
        for each in list(self.running.values()):
            self._step(each, deliver)
        return bool(self.running)

    def _join(self, texts: Sequence[FakeRow]) -> None:
        for each in texts:
            self.running[id(each)], self._made[id(each)] = each, 0
        weight = sum(each.weight for each in self.running.values())
        assert weight <= self._most or len(self.running) == 1, "more texts than allowed"
        self.most_running = max(self.most_running, weight)

    def _step(self, text: FakeRow, deliver: Deliver) -> None:
        self._made[id(text)] += 1
        if text.streams:
            deliver([(text, Piece((self._made[id(text)],), f"{self._made[id(text)]} "))])
        if self._made[id(text)] == text.steps:
            del self.running[id(text)]
            deliver([(text, text)])


class Device:
    """Answers a row with itself. Closed, it keeps a batch until it is opened."""

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
    """Instead of waiting, it moves the clock on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("everybody waits, and nothing is due")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only in waiting, and then at once."""

    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def virtually(work: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class TimedDevice(Executor):
    """Runs turns on a virtual loop: what a turn finds out is known when its time has passed."""

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
    """Keeps a turn until it is told to take it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __bool__(self) -> bool:
        """A turn waits."""
        return bool(self._waiting)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._waiting.append((future, fn, args))
        assert len(self._waiting) == 1, "two turns at a time"
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
    return Batcher(worker, BatchConfig(**SETTINGS | changes), metrics, limits, device)


async def settled() -> None:
    """Let everything happen that can without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)
