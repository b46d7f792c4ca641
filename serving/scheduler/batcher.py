"""Carries rows of all requests and tasks, batch by batch, to the one thread that owns the device.

The batcher lives on an event loop and never runs torch itself. While the device works, rows gather in the queue; only
an idle device waits a little for more of them. Running texts take one token in every step, whatever else waits.
Admission rejects what cannot be answered in time. Shadow rows go in steps of their own while no caller's row waits or
runs, and are left out of everything that is counted, limited, charged and estimated for callers. Knows no side
networks, no gRPC.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from serving.config import BatchConfig, LimitConfig, ShadowConfig
from serving.engine import Piece
from serving.errors import DeadlineExpired, Draining
from serving.metrics import Metrics
from serving.scheduler.admission import Admission, Limiter
from serving.scheduler.estimates import ArrivalGap, DeviceLoad, Estimates
from serving.scheduler.fair_queue import RowQueue
from serving.scheduler.in_flight import InFlight, InFlightRow
from serving.scheduler.requests import (
    Bundle,
    Event,
    ListRequest,
    OnStarted,
    Outcome,
    Request,
    Row,
    ShadowRequest,
    StreamRequest,
    Worker,
    ignore_started,
)
from serving.scheduler.selection import BatchSelector
from serving.scheduler.shadow_queue import ShadowQueue, ShadowStep
from serving.tracing import StepTrace

log = logging.getLogger(__name__)


class Batcher:
    """Takes rows and returns outcomes, in the rows' order. Use it on one event loop.

    Args:
        worker: takes steps on the device thread. An exception that it raises becomes the outcome of every row it has.
        device: runs the steps, one at a time; None: a thread of the batcher's own.
    """

    def __init__(
        self,
        worker: Worker,
        config: BatchConfig,
        metrics: Metrics | None = None,
        limits: LimitConfig | None = None,
        device: Executor | None = None,
        shadow: ShadowConfig | None = None,
    ) -> None:
        self._worker = worker
        self._config = config
        self._metrics = metrics or Metrics()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device") if device is None else device
        self._queue = RowQueue()
        self._on_device = InFlight(self._note_text_end)
        self._estimates = Estimates(config.max_running_rows)
        self._limits = Limiter(limits or LimitConfig(), self._metrics)
        self._admission = Admission(self._queue, self._on_device, self._estimates, self._limits, config, self._metrics)
        self._selector = BatchSelector(self._queue, self._estimates, config, self._drop_late)
        self._shadows = ShadowQueue(shadow or ShadowConfig(), config)
        self._arrivals = ArrivalGap(config.max_wait_s)
        self._requests: set[Request] = set()
        self._closed = False
        self._runner: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._metrics.queue_rows.set_function(lambda: self._queue.rows)
        self._metrics.queue_tokens.set_function(lambda: self._queue.tokens)

    @property
    def work(self) -> DeviceLoad:
        """How much of the device is used, and whether it fails."""
        return self._estimates.load

    @property
    def queued_rows(self) -> int:
        """Rows that wait, by weight."""
        return self._queue.rows

    @property
    def queued_tokens(self) -> int:
        """Tokens of the rows that wait."""
        return self._queue.tokens

    @property
    def running_rows(self) -> int:
        """Rows of texts that are being generated, by weight."""
        return self._on_device.running

    async def submit(
        self,
        rows: Sequence[Row],
        *,
        deadline: float | None = None,
        priority: int = 0,
        begun: OnStarted = ignore_started,
    ) -> list[Outcome]:
        """Answer `rows`. An exception in an outcome's place is that row's, or its task's (TaskOverloaded).

        Args:
            deadline: time.monotonic() seconds. Rows that wait or run at that time are cancelled.
            priority: 1 (served first) to 4; 0 is the configured default.
            begun: called with the indices of rows that go to the device.

        Raises:
            Overloaded: the queue is full; TooSlow: it takes longer than the deadline allows.
            DeadlineExpired: the deadline passed, or would have before the rows were through.
            Draining: `close` was called.
            InvalidInput: there is no such priority.
        """
        if not rows:
            return []
        request = ListRequest(rows, deadline, self._admission.level(priority), self._now())
        request.on_started = begun
        with self._in_flight(request):
            return await request.outcomes()

    async def stream(
        self, row: Row, *, deadline: float | None = None, priority: int = 0, begun: OnStarted = ignore_started
    ) -> AsyncGenerator[Event, None]:
        """Yield the pieces of one row's text as they are made, and last its answer.

        Closing the iterator cancels the row.

        Raises:
            What `submit` raises, and the row's own exception.
        """
        request = StreamRequest(row, deadline, self._admission.level(priority), self._now())
        request.on_started = begun
        with self._in_flight(request):
            ended = False
            while not ended:
                event = await request.next()
                try:
                    if isinstance(event, Exception):
                        raise event
                    ended = not isinstance(event, Piece)
                    yield event
                finally:
                    del event  # else an error's traceback holds this frame, and the frame the error

    def shadow(self, request: ShadowRequest) -> None:
        """Answer it when the device has nothing else to do. Rows for which there is no room or time are dropped."""
        if self._closed:
            request.drop()
            return
        self._shadows.add(request, self._now())
        if self._shadows:
            self._wake()

    async def close(self) -> None:
        """Stop now: what has no outcome yet fails with Draining. A step on the device ends first, and is ignored."""
        self._closed = True
        self._drop_shadows()
        for request in self._requests:
            request.fail(Draining())
        if self._runner:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        self._device.shutdown(wait=False)

    def admit(self, rows: int, deadline: float | None = None, coming: int = 0) -> None:
        """Raise what `submit` would raise now, as far as that is known before rows are tokenized.

        Args:
            rows: how many there will be.
            coming: rows of other requests that are being tokenized: they count as if they waited.
        """
        if self._closed:
            raise Draining()
        self._admission.check_rows(rows, deadline, self._now(), coming)

    # --- requests enter and leave

    @contextlib.contextmanager
    def _in_flight(self, request: Request) -> Iterator[None]:
        """Keep the request queued or running within the block; nothing of it is left after the block."""
        tasks = self._enter(request)
        try:
            yield
        except DeadlineExpired:
            self._metrics.expired_rows.inc(request.left)
            raise
        finally:
            self._leave(request, tasks)

    def _enter(self, request: Request) -> list[str]:
        """Admit the request and queue it; returns its tasks that count as in flight."""
        if self._closed:
            raise Draining()
        refused = self._admission.check(request, self._now())
        for index, row in enumerate(request.rows):
            if row.task in refused:
                request.settle(index, refused[row.task])
        tasks = list(dict.fromkeys(row.task for row in request.rows if row.task not in refused))
        self._limits.enter(tasks, request.bundles)
        self._requests.add(request)
        self._queue.add(request.bundles)
        self._note_queue()
        self._arrivals.note(self._now())
        if request.bundles:
            self._wake()
        return tasks

    def _leave(self, request: Request, tasks: list[str]) -> None:
        """Remove what the request still has in the queue, and have the next step free what it has on the device."""
        request.is_over = True
        self._requests.discard(request)
        self._unqueue(request.bundles)
        self._on_device.cancel(request)
        request.bundles = []  # they hold the request, which would hold them
        self._limits.leave(tasks)
        if request.trace is not None:
            request.trace.leave()
        if self._on_device.has_cancelled:
            self._wake()

    def _unqueue(self, bundles: Sequence[Bundle]) -> None:
        self._limits.left_queue(self._queue.remove(bundles))
        self._note_queue()

    def _note_queue(self) -> None:
        if self._queue.rows >= self._config.max_batch_rows or self._queue.tokens >= self._config.max_batch_tokens:
            self._full.set()
        else:
            self._full.clear()

    # --- the loop

    def _wake(self) -> None:
        self._arrived.set()
        if self._runner is None and not self._closed:
            self._runner = asyncio.create_task(self._run(), name="batcher")

    async def _run(self) -> None:
        try:
            idle = True
            while True:
                if idle:
                    await self._gather()
                cancelled = self._on_device.take_cancelled()
                batch = self._take()
                if batch:  # shadow texts must share no step with callers' rows, which they could fail
                    self._on_device.abort_shadows()
                    cancelled += self._on_device.take_cancelled()
                shadows = self._take_shadows(batch)
                if batch or shadows or cancelled or self._on_device:
                    await self._step(batch, shadows, cancelled)
                idle = not (self._queue or self._on_device)
        except Exception as error:  # a fault in here must not leave callers waiting for ever
            log.exception("the batcher failed; it starts afresh with the next request")
            for request in self._requests:
                request.fail(error)
            self._drop_shadows()
            self._runner = None

    async def _gather(self) -> None:
        """The device is idle: wait for a row, and then shortly for more. A shadow batch that is due ends the wait."""
        while not (self._queue or self._on_device):
            self._arrived.clear()
            due_s = self._shadows.due_s(self._now())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_s):
                    await self._arrived.wait()
                    continue
            return
        if self._on_device or not self._arrivals.expects_another:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.max_wait_s):
                await self._full.wait()

    def _take(self) -> list[Bundle]:
        """Take the next batch out of the queue."""
        now = self._now()
        batch = self._selector.select(self._on_device.running, now)
        if batch:
            self._queue.serve(batch)
            self._limits.left_queue(batch)
            self._note_queue()
        for bundle in batch:
            if bundle is bundle.request.bundles[0]:
                self._metrics.stage("queue", now - bundle.request.arrived)
                if bundle.request.trace is not None:
                    bundle.request.trace.request.stage("queue", bundle.request.arrived, now)
        return batch

    def _take_shadows(self, batch: Sequence[Bundle]) -> list[Bundle]:
        """Take the next shadow batch, if it is due and no caller's row waits or runs."""
        self._shadows.age(self._now())
        if batch or self._queue or self._on_device.running:
            return []
        texts = self._on_device.running_shadows
        return self._shadows.take(texts) if self._shadows.due_s(self._now(), texts) == 0 else []

    def _drop_shadows(self) -> None:
        self._shadows.clear()
        self._on_device.abort_shadows()

    def _drop_late(self, late: Sequence[Bundle], ready: float) -> None:
        """Remove the requests of these bundles from the queue: over, expired, or expired before `ready`."""
        now = self._now()
        for request in dict.fromkeys(bundle.request for bundle in late):
            if not request.is_over:
                request.fail(self._admission.lateness(request, now, ready))
            self._unqueue(request.bundles)

    async def _step(self, batch: Sequence[Bundle], shadows: Sequence[Bundle], cancelled: Sequence[Row]) -> None:
        """Run one step on the device. Events are passed on as soon as they are known, before the step ends."""
        loop = asyncio.get_running_loop()
        began = self._now()
        rows = self._on_device.begin([*batch, *shadows], began)
        self._estimates.begin_step(sum(bundle.tokens for bundle in batch), began)
        crowded = self._queue.scores > 0
        running = self._on_device.running
        shadow_step = ShadowStep(self._on_device.shadows(), sum(bundle.tokens for bundle in shadows))

        def deliver(events: Sequence[tuple[Row, Event]]) -> None:
            loop.call_soon_threadsafe(self._on_device.settle, list(events))

        trace = None if self._metrics.tracer is None else self._trace(batch, len(rows))
        step = self._worker.step if trace is None else partial(trace.run, self._worker.step)
        try:
            busy = await loop.run_in_executor(self._device, step, rows, cancelled, deliver)
            self._on_device.end_step(busy)
        except Exception as error:
            log.exception("a step with %d new rows failed", len(rows))
            self._on_device.fail(error)
            seconds = self._estimates.fail_step(self._now())
        else:
            seconds = self._estimates.end_step(self._now(), crowded=crowded, running=running)
        self._shadows.end_step(shadow_step, seconds)
        if trace is not None:
            trace.end()
        self._charge_texts()

    def _trace(self, batch: Sequence[Bundle], rows: int) -> StepTrace | None:
        """What follows a step for the traced requests in it, if there are any. Call it when its rows have begun."""
        assert self._metrics.tracer is not None
        new = dict.fromkeys(bundle.request.trace for bundle in batch)
        texts = dict.fromkeys(text.request.trace for text in self._on_device.texts())
        return self._metrics.tracer.step([*filter(None, new)], [*filter(None, texts)], rows)

    def _charge_texts(self) -> None:
        """Charge each text's task a token for each beam and step: how long a text will be is not known before."""
        for text in self._on_device.texts():
            self._queue.orders[text.request.priority].charge(text.row.task, text.row.weight)
        self._metrics.running_rows.set(self._on_device.running)

    def _note_text_end(self, text: InFlightRow, whole: bool) -> None:
        self._estimates.hold_time.learn(self._now() - text.since, whole)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
