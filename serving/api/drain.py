"""The one count of calls in flight. New calls are refused once the server shuts down."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, TypeVar

from serving.errors import Draining

Request = TypeVar("Request")


class Drain:
    """Counts calls in flight, and refuses new ones once the server shuts down. Use it on one event loop.

    Before it shuts down, a server may `leave` any number of times: streams that last and began earlier then end, so
    that a client opens them again elsewhere. Calls that begin later are served as before.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.left = 0
        """How many times the server left: a stream that lasts remembers the number at its beginning."""
        self._draining = asyncio.Event()
        self._ending = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def draining(self) -> bool:
        """Whether the server shuts down."""
        return self._draining.is_set()

    def begin(self) -> None:
        """Refuse new calls, and end streams that last."""
        self._draining.set()
        self._ending.set()

    def leave(self) -> None:
        """End the streams that last and have begun by now."""
        self.left += 1
        self._ending.set()
        if not self.draining:
            self._ending = asyncio.Event()

    async def begun(self) -> None:
        """Wait until the server begins to shut down."""
        await self._draining.wait()

    async def pause(self, seconds: float, since: int | None = None) -> None:
        """Wait for `seconds`, or until the server leaves or shuts down.

        Args:
            since: `left` at the beginning of the call that pauses.

        Raises:
            Draining: the server shuts down, or has left since then.
        """
        if since in (None, self.left):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), seconds)
        if self.draining or since not in (None, self.left):
            raise Draining()

    async def arriving(self, requests: AsyncIterator[Request], patience_s: float) -> AsyncGenerator[Request, None]:
        """A stream's requests. Raises Draining when the server leaves or shuts down and none comes for `patience_s`."""
        ending = asyncio.create_task(self._ending.wait())
        end = object()
        tasks: set[asyncio.Task[Any]] = {ending}
        coming: asyncio.Task[Any] | None = None
        try:
            while True:
                coming = asyncio.create_task(_next(requests, end))
                tasks = {ending, coming}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    await asyncio.wait({coming}, timeout=patience_s)
                if not coming.done():
                    raise Draining()
                if (request := coming.result()) is end:
                    return
                yield request
        finally:
            await end_tasks(tasks)
            del tasks, coming  # else an error's traceback would hold this frame, and its task the error

    async def idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False when `timeout_s` passes first."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @contextlib.contextmanager
    def call(self, *, lasting: bool = False) -> Iterator[None]:
        """Let a call in. A `lasting` one is not counted, so that nothing waits for it. Raises Draining."""
        if self.draining:
            raise Draining()
        if lasting:
            yield
            return
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()


async def end_tasks(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(requests: AsyncIterator[Any], end: Any) -> Any:
    """`anext` as the coroutine that a task needs."""
    return await anext(requests, end)
