"""Requests' prompts become tokens on threads of their own, off the event loop.

Requests that arrive together, or while the tokenizer is at work, share one call of it: a call costs more than a short
prompt. What is wrong with one request stays its own. Use it on one event loop.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from serving.errors import DeadlineExpired, Draining
from serving.metrics import Metrics
from serving.pipeline.preprocessing import Encoded, Encoder, InputRow, encode
from serving.pipeline.request import Refused, Target

MAX_ROWS = 256
"""Requests join a call up to so many rows, so that small ones do not wait for large ones while a thread is free."""

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
    def __init__(self, tokenizer: Encoder, threads: int, metrics: Metrics) -> None:
        self._tokenizer, self._metrics = tokenizer, metrics
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")
        self._free = threads
        self._waiting: list[_Request] = []
        self._closed = False
        self.rows = 0
        """Rows that wait here or become tokens, a row of several tasks once for each."""

    async def encode(
        self, targets: Sequence[Target | Refused], rows: Sequence[InputRow], deadline: float | None = None
    ) -> Result:
        """Every target's rows as tokens, or its own fault in its place.

        Args:
            deadline: time.monotonic() seconds, which is an event loop's clock too.

        Raises:
            DeadlineExpired.
            Draining: it is closed.
        """
        if self._closed:
            raise Draining()
        start, loop = perf_counter(), asyncio.get_running_loop()
        request = _Request(targets, rows, loop.create_future())
        self._waiting.append(request)
        self.rows += len(targets) * len(rows)
        if len(self._waiting) == 1:
            loop.call_soon(self._start)  # after the others that this turn of the loop brings
        alarm = None if deadline is None else loop.call_at(deadline, request.fail, DeadlineExpired())
        try:
            return await request.future
        finally:
            self.rows -= len(targets) * len(rows)
            if alarm:
                alarm.cancel()
            self._metrics.stage("tokenize", perf_counter() - start)

    def close(self) -> None:
        """Take no more: what waits fails with Draining, what a thread has begun it finishes."""
        self._closed = True
        self._threads.shutdown(wait=False)
        for request in self._waiting:
            request.fail(Draining())

    def _start(self) -> None:
        """Give the free threads what waits."""
        while self._free and (together := self._take()):
            self._free -= 1
            self._threads.submit(self._work, together, asyncio.get_running_loop())

    def _take(self) -> list[_Request]:
        """The oldest that make one call. Those whose caller went away are dropped."""
        self._waiting = [request for request in self._waiting if not request.future.done()]
        count = rows = 0
        for request in self._waiting:
            rows += len(request.rows)
            if count and rows > MAX_ROWS:
                break
            count += 1
        together, self._waiting = self._waiting[:count], self._waiting[count:]
        return together

    def _work(self, together: list[_Request], loop: asyncio.AbstractEventLoop) -> None:
        """On a thread."""
        results = encode(self._tokenizer, [(request.targets, request.rows) for request in together])
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(self._settle, together, results)

    def _settle(self, together: list[_Request], results: Sequence[Result | Exception]) -> None:
        self._free += 1
        for request, result in zip(together, results, strict=True):
            request.settle(result)
        self._start()
