"""Counts calls in flight and refuses new ones once the server shuts down. Lives on one event loop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, TypeVar

from serving.errors import Draining

Request = TypeVar("Request")


class Drain:
    """Counts calls in flight, and refuses new ones once the server shuts down. Lives on one event loop.

    Before that a server may `leave`, again and again: what lasts and was begun before ends, so that it holds up
    nothing. What is begun after it is served as ever.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._draining, self._idle, self._ending = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        self.left = 0
        """How often it was left: what lasts remembers the number of its beginning."""

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    def begin(self) -> None:
        self._draining.set()
        self._ending.set()

    def leave(self) -> None:
        """Have end what lasts now."""
        self.left += 1
        self._ending.set()
        if not self.draining:
            self._ending = asyncio.Event()

    async def begun(self) -> None:
        """Wait until the server begins to shut down."""
        await self._draining.wait()

    async def pause(self, seconds: float, since: int | None = None) -> None:
        """Wait that long, or shorter where the server leaves.

        Args:
            since: `left` when what pauses began.

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
        ending, nothing = asyncio.create_task(self._ending.wait()), object()
        tasks: set[asyncio.Task[Any]] = {ending}
        try:
            while True:
                tasks = {ending, coming := asyncio.create_task(_next(requests, nothing))}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    await asyncio.wait({coming}, timeout=patience_s)
                if not coming.done():
                    raise Draining()
                if (request := coming.result()) is nothing:
                    return
                yield request
        finally:
            await end_tasks(tasks)

    async def idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False when `timeout_s` passes first."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @contextlib.contextmanager
    def call(self, *, lasting: bool = False) -> Iterator[None]:
        """Let a call in; one that is `lasting` is not counted. Raises Draining."""
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
    """Cancel them, and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(requests: AsyncIterator[Any], otherwise: Any) -> Any:
    return await anext(requests, otherwise)
