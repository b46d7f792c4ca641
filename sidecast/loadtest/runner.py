"""Run a plan: callers or arrivals, level by level, and the server's metrics before and after. One event loop.

A level lasts `warmup_s`, then its window, then `tail_s`. After that no request is sent, and the requests in flight are
awaited, so that slow answers count too. Ctrl-C, which cancels the task, ends the load early.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sidecast.loadtest.inputs import Request
from sidecast.loadtest.loops import closed_loop, open_loop
from sidecast.loadtest.measure import Call, Failure, Window
from sidecast.loadtest.plan import Closed, Level, Plan
from sidecast.loadtest.scrape import Counts, Look, ScrapeError

TICK_S = 0.25
POLL_S = 0.01
"""Seconds between two checks of whether a steady window can begin or end."""

NOT_SENT = Failure("DEADLINE_EXCEEDED", "NOT_SENT", "--max-in-flight was used up until the request's --timeout")
UNREACHABLE = "UNREACHABLE"

Ask = Callable[[Request, Call, float], Awaitable[Failure | None]]
"""Sends a request with a timeout in seconds, and waits for its end. Fills the call's pieces if it is streamed."""
Scrape = Callable[[], Counts]
Tell = Callable[[Level, float, int], None]
"""Receives a level, its seconds so far, and how many calls have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Fit a closed loop's window to its calls, which may take long compared with the plan's times.

    Callers that all begin at once end short texts first, which is not the steady state: so the window begins when every
    caller has ended a call. A window that is short compared with a call measures chance: so it lasts until `calls` per
    caller have ended in it.
    """

    calls: int = 3
    longest_s: float = 60.0
    """Longest delay of the window's begin, and longest window, in seconds."""


@dataclass(slots=True, kw_only=True)
class Ran:
    """One level's record: its calls, the server's metrics around its window, and this process's load."""

    level: Level
    window: Window
    calls: list[Call] = field(default_factory=list)
    cpu_share: float = 0.0
    """Fraction of one core that this process used in the window."""
    most_in_flight: int = 0
    before: Look | None = None
    after: Look | None = None
    fault: str = ""
    """Why the server's metrics could not be read."""
    interrupted: bool = False
    sent: int = 0
    first_ended: int = 0
    """How many callers of a closed loop have ended a call."""

    @property
    def lost(self) -> bool:
        """Whether no call reached a server."""
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
        *,
        steady: Steady | None = None,
        tail_s: float = 0.0,
    ) -> None:
        """
        Args:
            steady: fits the windows of closed loops to their calls; None: a window is as long as the plan says.
            tail_s: seconds for which an open loop's load continues after its window, so that calls due at the window's
                end are answered under the same load.
        """
        self._plan = plan
        self._inputs = inputs
        self._ask = ask
        self._scrape = scrape
        self._tell = tell
        self._clock = clock
        self._steady = steady
        self._tail_s = tail_s
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
        steady = self._steady if isinstance(level, Closed) else None
        ran = Ran(level=level, window=Window(begins, math.inf if steady else begins + self._plan.duration_s))
        load = asyncio.create_task(self._put(level, start, ran, seed))
        try:
            await self._wait(begins, start, ran)
            if steady is not None and isinstance(level, Closed):
                await self._begin_steady(steady, level.callers, start, ran)
            ran.before = await self._look(ran)
            worked = time.process_time()
            await self._wait(ran.window.begins + self._plan.duration_s, start, ran)
            if steady is not None and isinstance(level, Closed):
                await self._end_steady(steady, level.callers, start, ran)
            ran.cpu_share = (time.process_time() - worked) / ran.window.seconds
            ran.after = await self._look(ran)
            await load
        except asyncio.CancelledError:
            await self._interrupt(load, ran)
        return ran

    async def _begin_steady(self, steady: Steady, callers: int, start: float, ran: Ran) -> None:
        await self._until(lambda: ran.first_ended == callers, self._clock() + steady.longest_s, start, ran)
        ran.window = Window(self._clock(), math.inf)

    async def _end_steady(self, steady: Steady, callers: int, start: float, ran: Ran) -> None:
        begins = ran.window.begins
        enough = steady.calls * callers
        ended = sum(call.ended >= begins for call in ran.calls)
        wanted = len(ran.calls) + enough - ended
        await self._until(lambda: len(ran.calls) >= wanted, begins + steady.longest_s, start, ran)
        ran.window = Window(begins, self._clock())

    async def _until(self, met: Callable[[], bool], latest: float, start: float, ran: Ran) -> None:
        while not met() and self._clock() < latest:
            self._tell(ran.level, self._clock() - start, len(ran.calls))
            await asyncio.sleep(POLL_S)

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
        async def send(due: float) -> bool:
            return await self._send(next(self._inputs), due, ran)

        if isinstance(level, Closed):
            await closed_loop(send, level.callers, self._clock, lambda: self._clock() < ran.window.ends)
        else:
            whole = self._plan.warmup_s + self._plan.duration_s + self._tail_s
            times = (start + offset for offset in level.times(whole, seed))
            await open_loop(send, times, self._clock, max_in_flight=self._plan.max_in_flight)

    async def _send(self, request: Request, due: float, ran: Ran) -> bool:
        """Send a request that was due then; return whether it was answered."""
        call = Call(task=", ".join(request.tasks), rows=len(request.rows), due=due, sent=self._clock())
        first = isinstance(ran.level, Closed) and ran.sent < ran.level.callers
        ran.sent += 1
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
        ran.first_ended += first
        return call.failure is None


def client_figures(ran: Ran) -> dict[str, Any]:
    """What this process did: the document's `client` of a level."""
    late = sorted(call.sent - call.due for call in ran.calls if call.due in ran.window)
    return {
        "cpu_share": ran.cpu_share,
        "most_in_flight": ran.most_in_flight,
        "late_ms": 1e3 * late[-(len(late) // 100) - 1] if late else 0.0,
    }
