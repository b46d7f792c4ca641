"""Carries rows of all requests and tasks in batches to the one thread that owns the device.

The batcher lives on an event loop and never runs torch itself. While the device works the queue gathers company by
itself; only an idle device waits a little for it. Knows no tasks, no side networks, no gRPC.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serving.config import BatchConfig
from serving.errors import DeadlineExpired, Draining, Overloaded
from serving.metrics import Metrics
from serving.row_queue import WINDOW_BATCHES, Bundle, Outcome, Request, Row, RowQueue, choose

log = logging.getLogger(__name__)

RETRY_S = (0.05, 30.0)
"""Least and longest pause that a shed caller is asked for."""


@contextlib.asynccontextmanager
async def within(deadline: float | None) -> AsyncIterator[None]:
    """Raise DeadlineExpired where the block is not through by then, in time.monotonic() seconds."""
    try:
        async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise DeadlineExpired() from None
        raise


class Batcher:
    """Rows in, outcomes out, in the rows' order. Use it on one event loop; its device thread is its own.

    Args:
        predict: called on the device thread with a batch's rows; returns one outcome per row. An exception it raises
            becomes the outcome of every row of that batch.
    """

    def __init__(
        self, predict: Callable[[list[Any]], list[Outcome]], config: BatchConfig, metrics: Metrics | None = None
    ) -> None:
        self._predict, self._config, self._metrics = predict, config, metrics or Metrics()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._queue = RowQueue()
        self._requests: set[Request] = set()
        self._rows_per_s = 0.0
        self._draining = False
        self._runner: asyncio.Task[None] | None = None
        self._arrived, self._full, self._quiet = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @property
    def queued_rows(self) -> int:
        return self._queue.rows

    async def submit(self, rows: Sequence[Row], *, deadline: float | None = None) -> list[Outcome]:
        """Answer `rows`: an exception in an outcome's place is that row's own.

        Args:
            deadline: time.monotonic() seconds. Rows still queued then are dropped before batching.

        Raises:
            Overloaded: the queue is full.
            DeadlineExpired: the deadline passed.
            Draining: `drain` or `close` was called.
        """
        if not rows:
            return []
        self.admit(len(rows), deadline)
        request = self._enqueue(rows, deadline)
        try:
            async with within(deadline):
                return await request.future
        finally:
            self._leave(request)

    async def drain(self) -> None:
        """Refuse new rows, finish the queued ones, stop."""
        self._draining = True
        while self._requests:
            self._quiet.clear()
            await self._quiet.wait()
        await self.close()

    async def close(self) -> None:
        """Stop now: what has no outcome yet fails with Draining. A batch on the device runs to its end, unheard."""
        self._draining = True
        for request in self._requests:
            request.fail(Draining())
        if self._runner:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        self._device.shutdown(wait=False)

    def admit(self, rows: int, deadline: float | None = None) -> None:
        """Raise what `submit` would raise right now, before work is spent on making rows."""
        if self._draining:
            raise Draining()
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineExpired()
        queued, limit = self._queue.rows, self._config.max_queued_rows
        if queued and queued + rows > limit:
            self._metrics.shed_requests.inc()
            raise Overloaded(queued, limit, self._retry_after_s())

    def _retry_after_s(self) -> float:
        """How long the queue takes at the pace of late."""
        expected = self._queue.rows / self._rows_per_s if self._rows_per_s else 1.0
        return min(max(expected, RETRY_S[0]), RETRY_S[1])

    def _enqueue(self, rows: Sequence[Row], deadline: float | None) -> Request:
        request = Request(rows, asyncio.get_running_loop().create_future(), deadline, time.monotonic())
        self._requests.add(request)
        self._queue.add(request.bundles)
        self._note_queue()
        self._arrived.set()
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="batcher")
        return request

    def _leave(self, request: Request) -> None:
        """The request is over: what it still has in the queue goes, and its slots are free."""
        self._requests.discard(request)
        self._queue.remove(request.bundles)
        self._note_queue()
        if not self._requests:
            self._quiet.set()

    def _note_queue(self) -> None:
        rows, tokens = self._queue.rows, self._queue.tokens
        self._metrics.queue_rows.set(rows)
        if rows >= self._config.max_batch_rows or tokens >= self._config.max_batch_tokens:
            self._full.set()
        else:
            self._full.clear()

    async def _run(self) -> None:
        try:
            idle = True
            while True:
                if idle:
                    await self._gather()
                if batch := self._take():
                    await self._answer(batch)
                idle = not self._queue
        except Exception as error:  # a fault in here must not leave callers waiting for ever
            log.exception("the batcher failed; it starts afresh with the next request")
            for request in self._requests:
                request.fail(error)
            self._runner = None

    async def _gather(self) -> None:
        """The device is idle: wait for a row, and then shortly for its company."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.max_wait_s):
                await self._full.wait()

    def _take(self) -> list[Bundle]:
        """The next batch, out of the queue. Empty where all that waited was cancelled or expired."""
        now = time.monotonic()
        window = self._queue.oldest(WINDOW_BATCHES * self._config.max_batch_rows)
        gone = [bundle for bundle in window if self._is_over(bundle.request, now)]
        batch = choose(window, self._config) if not gone else []
        self._queue.remove(gone or batch)
        self._note_queue()
        for bundle in batch:
            if bundle is bundle.request.bundles[0]:
                self._metrics.stage("queue", now - bundle.request.arrived)
        return batch

    def _is_over(self, request: Request, now: float) -> bool:
        if request.deadline is not None and request.deadline <= now:
            request.fail(DeadlineExpired())
        return request.future.done()

    async def _answer(self, batch: list[Bundle]) -> None:
        places = [(bundle.request, place) for bundle in batch for place in bundle.places]
        rows = [request.rows[place] for request, place in places]
        self._observe(batch, len(rows))
        started = time.monotonic()
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._device, self._predict, rows)
            if len(outcomes) != len(rows):
                raise RuntimeError(f"{len(rows)} rows in, {len(outcomes)} outcomes out")
        except Exception as error:
            log.exception("a batch of %d rows failed", len(rows))
            outcomes = [error] * len(rows)
        self._learn_rate(len(rows), time.monotonic() - started)
        for (request, place), outcome in zip(places, outcomes, strict=True):
            request.settle(place, outcome)

    def _observe(self, batch: list[Bundle], rows: int) -> None:
        lengths = [len(ids) for ids in {bundle.ids for bundle in batch}]
        tokens = len(lengths) * max(lengths)
        self._metrics.batch(rows, tokens, tokens - sum(lengths))

    def _learn_rate(self, rows: int, seconds: float) -> None:
        rate = rows / max(seconds, 1e-6)
        self._rows_per_s = 0.8 * self._rows_per_s + 0.2 * rate if self._rows_per_s else rate
