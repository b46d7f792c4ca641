"""Carries rows of all requests and tasks in turns to the one thread that owns the device.

The batcher lives on an event loop and never runs torch itself. While the device works the queue gathers company by
itself; only an idle device waits a little for it. Texts that are being made take a step in every turn, whatever waits.
Under pressure it sheds what cannot be answered in time before the device has spent anything on it. Rows in shadow go
in turns of their own when no caller's row waits or runs, and are no part of what is counted, limited, charged and
learned for callers. Knows no side networks, no gRPC.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from serving.config import BatchConfig, LimitConfig, ShadowConfig
from serving.engine import Piece
from serving.errors import DeadlineExpired, Draining, InvalidInput, Overloaded, TooSlow
from serving.metrics import Metrics
from serving.scheduler.admission import Limiter
from serving.scheduler.estimates import DeviceLoad, SlotHoldTime, Throughput
from serving.scheduler.fair_queue import PRIORITIES, RowQueue
from serving.scheduler.in_flight import InFlight, InFlightRow
from serving.scheduler.requests import (
    Bundle,
    ListRequest,
    OnStarted,
    Outcome,
    Predict,
    Request,
    Row,
    ShadowRequest,
    StreamRequest,
    Worker,
    ignore_started,
    worker_of,
)
from serving.scheduler.selection import BatchSelector
from serving.scheduler.shadow_queue import ShadowQueue, ShadowTurn

log = logging.getLogger(__name__)

RETRY_S = (0.05, 30.0)
"""Least and longest pause that a shed caller is asked for."""


@contextlib.asynccontextmanager
async def within(deadline: float | None) -> AsyncIterator[None]:
    """Raise DeadlineExpired where the block is not through by then, in time.monotonic() seconds."""
    try:
        async with asyncio.timeout_at(deadline) as limit:  # an event loop's clock is time.monotonic()
            yield
    except TimeoutError:
        if limit.expired():
            raise DeadlineExpired() from None
        raise


class Batcher:
    """Rows in, outcomes out, in the rows' order. Use it on one event loop; its device thread is its own.

    Args:
        worker: takes turns on the device thread. A function from a list of rows to their outcomes will do where all
            rows are answered at once. An exception that it raises becomes the outcome of every row it has.
        device: runs the turns, instead of a thread of its own.
    """

    def __init__(
        self,
        worker: Worker | Predict,
        config: BatchConfig,
        metrics: Metrics | None = None,
        limits: LimitConfig | None = None,
        device: Executor | None = None,
        shadow: ShadowConfig | None = None,
    ) -> None:
        self._worker, self._config, self._metrics = worker_of(worker), config, metrics or Metrics()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device") if device is None else device
        self._queue, self._pace, self._places = RowQueue(), Throughput(), SlotHoldTime(config.max_running_rows)
        self.work = DeviceLoad(self._pace, config.max_running_rows)
        self._taking = BatchSelector(self._queue, self._pace, self._places, config, self._drop)
        self._limits = Limiter(limits or LimitConfig(), self._metrics)
        self._on_device = InFlight(self._note_ended)
        self._shadows = ShadowQueue(shadow or ShadowConfig(), config)
        self._started, self._turn_tokens = 0.0, 0
        self._last: float | None = None
        """When a request came last, and how far apart they come."""
        self._gap_s = 0.0
        self._requests: set[Request] = set()
        self._draining = False
        self._runner: asyncio.Task[None] | None = None
        self._arrived, self._full, self._quiet = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._metrics.queue_rows.set_function(lambda: self._queue.rows)
        self._metrics.queue_tokens.set_function(lambda: self._queue.tokens)

    @property
    def queued_rows(self) -> int:
        """Rows that wait, by weight."""
        return self._queue.rows

    @property
    def queued_tokens(self) -> int:
        """Of the rows that wait."""
        return self._queue.tokens

    @property
    def running_rows(self) -> int:
        """Rows of texts that are being made, by weight."""
        return self._on_device.running

    async def submit(
        self,
        rows: Sequence[Row],
        *,
        deadline: float | None = None,
        priority: int = 0,
        begun: OnStarted = ignore_started,
    ) -> list[Outcome]:
        """Answer `rows`: an exception in an outcome's place is that row's own, or its task's (TaskOverloaded).

        Args:
            deadline: time.monotonic() seconds. Rows that wait or run then leave.
            priority: 1 (served first) to 4; 0 is the configured default.
            begun: told of the places of the rows that go to the device, as they do.

        Raises:
            Overloaded: the queue is full; TooSlow: it is too long for the deadline.
            DeadlineExpired: the deadline passed, or would before the rows were through.
            Draining: `drain` or `close` was called.
            InvalidInput: no such priority.
        """
        if not rows:
            return []
        request = ListRequest(rows, deadline, self._level(priority), self._now())
        request.begun = begun
        with self._in_flight(request):
            if deadline is None:
                return await request.outcomes()
            expiry = asyncio.get_running_loop().call_at(deadline, request.fail, DeadlineExpired())
            try:
                return await request.outcomes()
            finally:
                expiry.cancel()

    async def stream(
        self, row: Row, *, deadline: float | None = None, priority: int = 0, begun: OnStarted = ignore_started
    ) -> AsyncGenerator[Any, None]:
        """The pieces of one row's text as they are made, and last its answer. To close the iterator cancels the row.

        Raises:
            What `submit` raises, and the row's own exception.
        """
        request = StreamRequest(row, deadline, self._level(priority), self._now())
        request.begun = begun
        with self._in_flight(request):
            ended = False
            while not ended:
                async with within(deadline):
                    event = await request.next()
                if isinstance(event, Exception):
                    raise event
                ended = not isinstance(event, Piece)
                yield event

    def shadow(self, request: ShadowRequest) -> None:
        """Answer it when the device has nothing else to do. It is dropped, in part or later, where that is never."""
        if self._draining:
            request.drop()
            return
        self._shadows.add(request, self._now())
        if self._shadows:
            self._wake()

    async def drain(self) -> None:
        """Refuse new rows, finish the queued and the running ones, stop. Rows in shadow are dropped."""
        self._draining = True
        self._drop_shadows()
        while self._requests:
            self._quiet.clear()
            await self._quiet.wait()
        await self.close()

    async def close(self) -> None:
        """Stop now: what has no outcome yet fails with Draining. A turn on the device runs to its end, unheard."""
        self._draining = True
        self._drop_shadows()
        for request in self._requests:
            request.fail(Draining())
        if self._runner:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        self._device.shutdown(wait=False)

    def admit(self, rows: int, deadline: float | None = None, coming: int = 0) -> None:
        """Raise what `submit` would raise right now, as far as it can be told before work is spent on making rows.

        Args:
            coming: rows that others are making at the moment: they count as if they were in the queue.
        """
        if self._draining:
            raise Draining()
        if deadline is not None and deadline <= self._now():
            raise DeadlineExpired()
        self._check_room("rows", self._queue.rows + coming, rows, self._config.max_queued_rows)

    # --- the way in and out

    @contextlib.contextmanager
    def _in_flight(self, request: Request) -> Iterator[None]:
        """The request waits and runs within the block, and is out of everything after it."""
        tasks = self._enter(request)
        try:
            yield
        except DeadlineExpired:
            self._metrics.expired_rows.inc(request.left)
            raise
        finally:
            self._leave(request, tasks)

    def _enter(self, request: Request) -> list[str]:
        """Admit it; returns its tasks that are in flight with it."""
        self.admit(sum(row.weight for row in request.rows), request.deadline)
        refused = self._limits.refused(request.rows, self._retry_after_s())
        request.bundle(place for place, row in enumerate(request.rows) if row.task not in refused)
        tokens = sum(bundle.tokens for bundle in request.bundles)
        self._check_room("tokens", self._queue.tokens, tokens, self._config.max_queued_tokens)
        self._check_deadline(request, tokens)
        self._check_places(request)
        if refused:
            self._metrics.shed("task")
        for place, row in enumerate(request.rows):
            if row.task in refused:
                request.settle(place, refused[row.task])
        tasks = list(dict.fromkeys(row.task for row in request.rows if row.task not in refused))
        self._limits.enter(tasks, request.bundles)
        self._requests.add(request)
        self._queue.add(request.bundles)
        self._note_queue()
        self._note_arrival()
        if request.bundles:
            self._wake()
        return tasks

    def _leave(self, request: Request, tasks: list[str]) -> None:
        """It is over: what it still has in the queue goes, and what is on the device leaves with the next turn."""
        request.is_over = True
        self._requests.discard(request)
        self._unqueue(request.bundles)
        self._on_device.leave(request)
        self._limits.leave(tasks)
        if self._on_device.has_gone:
            self._wake()
        if not self._requests:
            self._quiet.set()

    def _unqueue(self, bundles: Sequence[Bundle]) -> None:
        self._limits.left_queue(self._queue.remove(bundles))
        self._note_queue()

    def _level(self, priority: int) -> int:
        level = priority or self._config.default_priority
        if level not in PRIORITIES:
            raise InvalidInput("priority", f"must be 1 (the highest) to {max(PRIORITIES)}, or 0; got {priority}")
        return level

    def _check_room(self, what: str, queued: int, more: int, limit: int) -> None:
        if queued and queued + more > limit:
            self._metrics.shed("queue")
            raise Overloaded(queued, limit, self._retry_after_s(), what)

    def _check_deadline(self, request: Request, tokens: int) -> None:
        """Shed what would be answered too late at the pace of late; nothing where that is unknown or none wait.

        Before it come the turn in progress and what is ahead in the queue; its own batch may end a turn later.
        """
        if request.deadline is None or not request.bundles or not self._queue.scores or not self._pace.is_known:
            return
        wait, left = self._turn_left_s() + self._pace.turn_seconds(self._queue.tokens), request.deadline - self._now()
        if wait + self._pace.seconds(self._queue.tokens + tokens) <= left:
            return
        ahead = self._queue.ahead_of(request.priority, request.bundles[-1].owner, tokens)
        wait += self._pace.seconds(ahead + tokens)
        if wait > left:
            self._metrics.shed("deadline")
            raise TooSlow(wait, left, _within_bounds(wait - left))

    def _check_places(self, request: Request) -> None:
        """Shed texts that would end too late, as they hold their places of late; nothing where that is unknown.

        While there is a place for the first of them, they are tried.
        """
        texts = [bundle for bundle in request.bundles if bundle.running]
        if request.deadline is None or not texts or not self._places.is_known:
            return
        rows, running = sum(bundle.running for bundle in texts), self._on_device.running
        ahead = self._queue.texts_ahead_of(request.priority, texts[-1].owner, rows)
        if not self._places.wait_s(ahead + texts[0].running, running) or not (ahead or running):
            return
        needs = self._places.wait_s(ahead + rows, running) + self._places.hold_s
        if needs > (left := request.deadline - self._now()):
            self._metrics.shed("deadline")
            raise TooSlow(needs, left, _within_bounds(needs - left))

    def _note_ended(self, text: InFlightRow, whole: bool) -> None:
        self._places.learn(self._now() - text.since, whole)

    def _retry_after_s(self) -> float:
        """How long the queue takes at the pace of late."""
        return _within_bounds(self._pace.seconds(self._queue.tokens) if self._pace.is_known else 1.0)

    def _note_queue(self) -> None:
        if self._queue.rows >= self._config.max_batch_rows or self._queue.tokens >= self._config.max_batch_tokens:
            self._full.set()
        else:
            self._full.clear()

    # --- the loop

    def _note_arrival(self) -> None:
        now, most = self._now(), 10 * self._config.max_wait_s
        if self._last is not None:
            self._gap_s = (self._gap_s + min(now - self._last, most)) / 2
        self._last = now

    def _wake(self) -> None:
        self._arrived.set()
        if self._runner is None and not self._draining:
            self._runner = asyncio.create_task(self._run(), name="batcher")

    async def _run(self) -> None:
        try:
            idle = True
            while True:
                if idle:
                    await self._gather()
                gone = self._on_device.take_gone()
                batch = self._take()
                gone += self._give_way(batch)
                shadows = self._take_shadows(batch)
                if batch or shadows or gone or self._on_device:
                    await self._turn(batch, shadows, gone)
                idle = not (self._queue or self._on_device)
        except Exception as error:  # a fault in here must not leave callers waiting for ever
            log.exception("the batcher failed; it starts afresh with the next request")
            for request in self._requests:
                request.fail(error)
            self._drop_shadows()
            self._runner = None

    async def _gather(self) -> None:
        """The device is idle: wait for a row, and then shortly for its company. Or until a batch in shadow is due."""
        while not (self._queue or self._on_device):
            self._arrived.clear()
            due_s = self._shadows.due_s(self._now())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_s):
                    await self._arrived.wait()
                    continue
            return
        if self._on_device or not self._has_company():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.max_wait_s):
                await self._full.wait()

    def _has_company(self) -> bool:
        """Whether another request may be expected within the wait: requests of late came as close together."""
        return self._gap_s <= self._config.max_wait_s

    def _take(self) -> list[Bundle]:
        """The next batch, out of the queue."""
        batch = self._taking.take(self._on_device.running, self._now())
        self._serve(batch)
        return batch

    def _take_shadows(self, batch: Sequence[Bundle]) -> list[Bundle]:
        """The next batch in shadow, out of its queue, where it is due and no caller's row waits or runs."""
        self._shadows.age(self._now())
        if batch or self._queue or self._on_device.running:
            return []
        texts = self._on_device.running_shadows
        return self._shadows.take(texts) if self._shadows.due_s(self._now(), texts) == 0 else []

    def _give_way(self, batch: Sequence[Bundle]) -> list[Row]:
        """Texts in shadow end when callers' rows come: they share no turn, nor what befalls it. Returns them."""
        if not batch:
            return []
        for request, rows in self._on_device.shadows().items():
            request.drop(rows)
            self._on_device.leave(request)
        return self._on_device.take_gone()

    def _drop_shadows(self) -> None:
        self._shadows.clear()
        for request in self._on_device.shadows():
            request.drop()
            self._on_device.leave(request)

    def _drop(self, late: Sequence[Bundle], soon: float) -> None:
        """Out of the queue with the requests of these bundles: over, expired, or expired before `soon`."""
        now = self._now()
        for request in dict.fromkeys(bundle.request for bundle in late):
            if not request.is_over:
                request.fail(self._lateness(request, now, soon))
            self._unqueue(request.bundles)

    def _lateness(self, request: Request, now: float, soon: float) -> DeadlineExpired | TooSlow:
        """Whoever still has time is told that it is too little, and when to come back."""
        if request.deadline is None or request.deadline <= now:
            return DeadlineExpired()
        self._metrics.shed("deadline")
        return TooSlow(soon - now, request.deadline - now, self._retry_after_s())

    def _serve(self, batch: Sequence[Bundle]) -> None:
        now = self._now()
        if batch:
            self._queue.serve(batch)
            self._limits.left_queue(batch)
            self._note_queue()
        for bundle in batch:
            if bundle is bundle.request.bundles[0]:
                self._metrics.stage("queue", now - bundle.request.arrived)

    async def _turn(self, batch: Sequence[Bundle], shadows: Sequence[Bundle], gone: Sequence[Row]) -> None:
        """One turn on the device: what becomes known during it is told at once."""
        loop, tokens = asyncio.get_running_loop(), sum(bundle.tokens for bundle in batch)
        rows = self._on_device.begin([*batch, *shadows], self._now())
        self._started, self._turn_tokens = self._now(), tokens
        crowded = self._queue.scores > 0
        running = self._on_device.running
        beside = ShadowTurn(self._on_device.shadows(), sum(bundle.tokens for bundle in shadows))

        def deliver(events: Sequence[tuple[Any, Any]]) -> None:
            loop.call_soon_threadsafe(self._on_device.settle, list(events))

        try:
            busy = await loop.run_in_executor(self._device, self._worker.turn, rows, gone, deliver)
            self._on_device.end_turn(busy)
        except Exception as error:
            log.exception("a turn with %d new rows failed", len(rows))
            self._on_device.fail(error)
            self.work.failed(self._now() - self._started)
        else:
            seconds = self._now() - self._started
            self._pace.learn(tokens, seconds, crowded)
            self.work.turned(seconds, tokens, running)
        self._shadows.ended(beside, self._now() - self._started)
        self._turn_tokens = 0
        self._charge_texts()

    def _charge_texts(self) -> None:
        """A text costs its task a token for each beam and turn: what it will come to is not known before."""
        for held in self._on_device.texts():
            self._queue.orders[held.request.priority].charge(held.row.task, held.row.weight)
        self._metrics.running_rows.set(self._on_device.running)

    def _turn_left_s(self) -> float:
        """How long the turn in progress still takes, at the pace of late."""
        if not self._turn_tokens:
            return 0.0
        return max(0.0, self._started + self._pace.seconds(self._turn_tokens) - self._now())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _within_bounds(retry_s: float) -> float:
    return min(max(retry_s, RETRY_S[0]), RETRY_S[1])
