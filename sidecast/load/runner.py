"""Puts the load on: callers or arrivals, level by level, and what the server counted meanwhile. One event loop.

A level is one stretch of load, `warmup_s` and then the window. When the window has ended nothing more is sent, and what
was sent is waited for, so that slow answers are not left out. Ctrl-C, which cancels the task, ends the load early.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sidecast.load.inputs import Request
from sidecast.load.measure import Call, Failure, Window
from sidecast.load.plan import Closed, Level, Open, Plan
from sidecast.load.scrape import Counts, Look, ScrapeError

PAUSE_S = 0.01
"""Of a caller after a failed call: a refusal comes so fast that callers would do nothing but ask."""
TICK_S = 0.25

NOT_SENT = Failure("DEADLINE_EXCEEDED", "NOT_SENT", "--max-in-flight was used up until the request's --timeout")
UNREACHABLE = "UNREACHABLE"

Ask = Callable[[Request, Call, float], Awaitable[Failure | None]]
"""Sends a request, with a timeout in seconds, and waits for its end; notes the call's pieces where it has any."""
Scrape = Callable[[], Counts]
Tell = Callable[[Level, float, int], None]
"""Told a level, its seconds so far, and how many calls have ended."""


@dataclass(slots=True, kw_only=True)
class Ran:
    """One level: what its callers saw, and what the server and this process did in its window."""

    level: Level
    window: Window
    calls: list[Call] = field(default_factory=list)
    cpu_share: float = 0.0
    """Of one core, by this process."""
    most_in_flight: int = 0
    before: Look | None = None
    after: Look | None = None
    fault: str = ""
    """Why the server's metrics could not be read."""
    interrupted: bool = False

    @property
    def lost(self) -> bool:
        """Whether every single call found nobody."""
        reasons = {call.failure.reason if call.failure else None for call in self.calls}
        return reasons == {UNREACHABLE}


class Runner:
    """Runs a plan's levels, once."""

    def __init__(
        self,
        plan: Plan,
        inputs: Iterator[Request],
        ask: Ask,
        scrape: Scrape | None = None,
        tell: Tell = lambda level, seconds, ended: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._plan, self._inputs, self._ask, self._scrape = plan, inputs, ask, scrape
        self._tell, self._clock = tell, clock
        self._in_flight = 0

    async def run(self) -> list[Ran]:
        """All levels; fewer where it is interrupted, or where the server has gone."""
        levels: list[Ran] = []
        for number, level in enumerate(self._plan.levels):
            ran = await self._run_level(level, self._plan.seed + number)
            levels.append(ran)
            if ran.interrupted or ran.lost:
                break
        return levels

    async def _run_level(self, level: Level, seed: int) -> Ran:
        start = self._clock()
        begins = start + self._plan.warmup_s
        ran = Ran(level=level, window=Window(begins, begins + self._plan.duration_s))
        load = asyncio.create_task(self._put(level, start, ran, seed))
        try:
            await self._wait(begins, start, ran)
            ran.before, worked = await self._look(ran), time.process_time()
            await self._wait(ran.window.ends, start, ran)
            ran.cpu_share = (time.process_time() - worked) / ran.window.seconds
            ran.after = await self._look(ran)
            await load
        except asyncio.CancelledError:
            await self._interrupt(load, ran)
        return ran

    async def _interrupt(self, load: "asyncio.Task[None]", ran: Ran) -> None:
        """End now: the window, where it had not ended, and the load."""
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        ran.interrupted = True
        ran.window = Window(ran.window.begins, max(min(ran.window.ends, self._clock()), ran.window.begins + 1e-3))
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
        if ran.before is not None and ran.after is None:
            ran.after = await self._look(ran)

    async def _wait(self, until: float, start: float, ran: Ran) -> None:
        while (left := until - self._clock()) > 0:
            self._tell(ran.level, self._clock() - start, len(ran.calls))
            await asyncio.sleep(min(left, TICK_S))
        self._tell(ran.level, self._clock() - start, len(ran.calls))

    async def _look(self, ran: Ran) -> Look | None:
        if self._scrape is None:
            return None
        try:
            return Look(await asyncio.to_thread(self._scrape), self._clock())
        except ScrapeError as error:
            ran.fault = str(error)
            return None

    async def _put(self, level: Level, start: float, ran: Ran, seed: int) -> None:
        if isinstance(level, Closed):
            async with asyncio.TaskGroup() as callers:
                for _ in range(level.callers):
                    callers.create_task(self._call(ran))
        else:
            await self._arrive(level, start, ran, seed)

    async def _call(self, ran: Ran) -> None:
        """One caller of a closed loop."""
        while (now := self._clock()) < ran.window.ends:
            call = await self._send(next(self._inputs), now, ran)
            if call.failure is not None:
                await asyncio.sleep(PAUSE_S)

    async def _arrive(self, level: Open, start: float, ran: Ran, seed: int) -> None:
        """An open loop: whoever is due is sent as soon as there is room, and waits from when it was due."""
        room = asyncio.Semaphore(self._plan.max_in_flight)

        async def send(due: float) -> None:
            try:
                await self._send(next(self._inputs), due, ran)
            finally:
                room.release()

        whole = self._plan.warmup_s + self._plan.duration_s
        async with asyncio.TaskGroup() as sends:
            for offset in level.times(whole, seed):
                await asyncio.sleep(max(start + offset - self._clock(), 0.0))
                await room.acquire()
                sends.create_task(send(start + offset))

    async def _send(self, request: Request, due: float, ran: Ran) -> Call:
        call = Call(task=", ".join(request.tasks), rows=len(request.rows), due=due, sent=self._clock())
        left = due + self._plan.timeout_s - call.sent
        if left > 0:
            self._in_flight += 1
            ran.most_in_flight = max(ran.most_in_flight, self._in_flight)
            try:
                call.failure = await self._ask(request, call, left)
            finally:
                self._in_flight -= 1
        else:
            call.failure = NOT_SENT
        call.ended = self._clock()
        ran.calls.append(call)
        return call


def client_figures(ran: Ran) -> dict[str, Any]:
    """What this process did: the document's `client` of a level."""
    late = sorted(call.sent - call.due for call in ran.calls if call.due in ran.window)
    return {
        "cpu_share": ran.cpu_share,
        "most_in_flight": ran.most_in_flight,
        "late_ms": 1e3 * late[-(len(late) // 100) - 1] if late else 0.0,
    }
