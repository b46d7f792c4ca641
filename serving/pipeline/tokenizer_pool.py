"""Threads that render and tokenize requests, off the event loop.

Requests that arrive together, or while all threads are busy, share one call of the tokenizer: a call costs more than a
short prompt. A fault of one request fails that request alone. Use it on one event loop.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from serving.errors import DeadlineExpired, Draining
from serving.metrics import Metrics
from serving.pipeline.preprocessing import Encoded, Encoder, encode
from serving.pipeline.request import InputRow, Refused, Target
from serving.tracing import current_trace

MAX_ROWS = 256
"""Rows of one call. Further requests go to another thread, so that small ones do not wait for large ones."""

Result = list[Encoded | Refused]


@dataclass(slots=True, eq=False)
class _Request:
    targets: Sequence[Target | Refused]
    rows: Sequence[InputRow]
    future: "asyncio.Future[Result]"

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def settle(self, result: "Result | Exception") -> None:
        if isinstance(result, Exception):
            self.fail(result)
        elif not self.future.done():
            self.future.set_result(result)


class TokenizerPool:
    """Threads that share one tokenizer, and the queue of requests in front of them."""

    def __init__(self, tokenizer: Encoder, threads: int, metrics: Metrics) -> None:
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")
        self._free = threads
        self._waiting: list[_Request] = []
        self._closed = False
        self.rows = 0
        """Rows that wait or are being tokenized; a row of several tasks counts once for each task."""

    async def encode(
        self, targets: Sequence[Target | Refused], rows: Sequence[InputRow], deadline: float | None = None
    ) -> Result:
        """The rows as tokens for each target, or that target's fault in its place.

        Args:
            deadline: time.monotonic() seconds, which is an event loop's clock too.

        Raises:
            DeadlineExpired.
            Draining: the pool is closed.
        """
        if self._closed:
            raise Draining()
        start = perf_counter()
        loop = asyncio.get_running_loop()
        request = _Request(targets, rows, loop.create_future())
        self._waiting.append(request)
        self.rows += len(targets) * len(rows)
        if len(self._waiting) == 1:
            loop.call_soon(self._start)  # after the other requests that arrive in this iteration of the loop
        alarm = None if deadline is None else loop.call_at(deadline, request.fail, DeadlineExpired())
        try:
            return await request.future
        finally:
            self.rows -= len(targets) * len(rows)
            if alarm:
                alarm.cancel()
            end = perf_counter()
            self._metrics.stage("tokenize", end - start)
            if (trace := current_trace.get()) is not None:
                trace.stage("tokenize", start, end)
            del request  # else its future holds an error, whose traceback holds this frame

    def close(self) -> None:
        """Take no more requests. Those that wait fail with Draining; a call that has begun is finished."""
        self._closed = True
        self._threads.shutdown(wait=False)
        for request in self._waiting:
            request.fail(Draining())

    def _start(self) -> None:
        """Give the waiting requests to the free threads."""
        while self._free and (batch := self._take()):
            self._free -= 1
            self._threads.submit(self._work, batch, asyncio.get_running_loop())

    def _take(self) -> list[_Request]:
        """The oldest requests that fit into one call. Requests that have ended meanwhile are dropped."""
        self._waiting = [request for request in self._waiting if not request.future.done()]
        count = rows = 0
        for request in self._waiting:
            rows += len(request.rows)
            if count and rows > MAX_ROWS:
                break
            count += 1
        batch = self._waiting[:count]
        self._waiting = self._waiting[count:]
        return batch

    def _work(self, batch: list[_Request], loop: asyncio.AbstractEventLoop) -> None:
        """Runs on a thread of the pool."""
        results = encode(self._tokenizer, [(request.targets, request.rows) for request in batch])
        with suppress(RuntimeError):  # the loop was closed meanwhile: no caller waits
            loop.call_soon_threadsafe(self._settle, batch, results)

    def _settle(self, batch: list[_Request], results: Sequence[Result | Exception]) -> None:
        self._free += 1
        for request, result in zip(batch, results, strict=True):
            request.settle(result)
        self._start()
