"""What the interceptor does with the bytes of a request, and how streams end when the server leaves."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serving.api.drain import Drain
from serving.errors import Draining


async def test_watches_end_when_the_server_stops_but_calls_are_completed() -> None:
    drain = Drain()
    waiting = asyncio.create_task(drain.pause(60, drain.left))
    reading = asyncio.create_task(_read(drain))
    between = drain.left
    await asyncio.sleep(0)
    drain.leave()
    for task in (waiting, reading):
        with pytest.raises(Draining):
            await task
    with pytest.raises(Draining):  # it did not wait when the server left
        await drain.pause(60, between)
    with drain.call():
        await drain.pause(0.001, drain.left)  # what begins after it is served
    again = asyncio.create_task(_read(drain))
    await asyncio.sleep(0.01)
    assert not again.done()
    drain.begin()
    drain.leave()
    with pytest.raises(Draining):
        await again
    with pytest.raises(Draining):
        await drain.pause(60)


async def _read(drain: Drain) -> None:
    _ = [request async for request in drain.arriving(_silent(), patience_s=0)]


async def _silent() -> AsyncIterator[object]:
    await asyncio.Event().wait()
    yield
