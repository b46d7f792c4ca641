"""The two loops that put load on a server: callers that wait for their answers, and requests that arrive at set times.

Both call a function that sends one request and waits for its end. That function makes the request and records or checks
its answer. `sidecast bench` and the benchmarks use these loops.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

PAUSE_S = 0.01
"""Pause of a caller after a failed request: the server rejects so fast that callers would only send requests."""

Clock = Callable[[], float]
"""Seconds."""


async def closed_loop(
    send: Callable[[float], Awaitable[bool]], callers: int, clock: Clock, going: Callable[[], bool]
) -> None:
    """Keep `callers` requests in flight while `going()`, and wait for the last.

    A caller sends its next request when the one before has ended, and after PAUSE_S where that one failed.

    Args:
        send: sends a request at that time of the clock and waits for its end; says whether it was answered.
    """

    async def call() -> None:
        while going():
            if not await send(clock()):
                await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as calls:
        for _ in range(callers):
            calls.create_task(call())


async def open_loop(
    send: Callable[[float], Awaitable[object]],
    times: Iterable[float],
    clock: Clock,
    going: Callable[[], bool] = lambda: True,
    max_in_flight: int | None = None,
) -> None:
    """Send a request at each of `times` while `going()`, however long the others take, and wait for the last.

    Args:
        send: sends the request that was due at that time of the clock, and waits for its end.
        times: of the clock, in ascending order.
        max_in_flight: what is due while so many requests are in flight waits until one of them has ended.
    """
    room = asyncio.Semaphore(max_in_flight) if max_in_flight else None

    async def arrive(due: float) -> None:
        try:
            await send(due)
        finally:
            if room:
                room.release()

    async with asyncio.TaskGroup() as arrivals:
        for due in times:
            await asyncio.sleep(max(due - clock(), 0.0))
            if room:
                await room.acquire()
            if not going():
                return
            arrivals.create_task(arrive(due))
