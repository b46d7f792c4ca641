"""Load on a server, from a process of its own: callers that each send a row, wait for its answer, and send the next.

`measure_load` starts `python -m benchmarks.load`, which prints one JSON line. No torch in that process.
"""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from benchmarks.harness import BenchmarkError, plain_errors
from benchmarks.machine import ROOT
from benchmarks.served import Served, counted
from serving.client import AsyncClient
from serving.client_errors import SidecastError

SENTENCES = (
    "A gripping film from its first minute to its last.",
    "Dull.",
    "The acting is fine, but the story goes nowhere and takes two hours to get there.",
    "I bought this camera for a trip to Norway and it has not let me down once, not even in heavy rain.",
    "Arrived late, with a dent in the lid.",
    "The battery lasts a day if you are careful.",
    "An affectionate portrait of a small town, told with more wit than its trailer would have you believe.",
    "My daughter loves it!",
    "The central bank left interest rates unchanged on Thursday, as most economists had expected.",
    "It is neither good nor bad, and far too long for what it has to say.",
    "Sound quality is excellent for the price.",
    "Shares of the airline fell four per cent after it warned that fuel would cost more than planned this year.",
    "Who thought that this ending was a good idea?",
    "The second half drags.",
    "After three weeks of daily use the hinge broke, and the shop would neither repair it nor give me my money back.",
    "Beautifully shot, badly written.",
    "The mayor promised that the bridge would be open again before the winter, which is what he said last year too.",
    "Works as described, no complaints.",
    "A sequel that nobody asked for turns out to be one of the funniest comedies of the summer.",
    "The manual is useless, so I had to look up on the internet how to set the clock.",
    "Scientists found traces of water in rocks that are older than the continents themselves.",
    "Best headphones I have ever owned.",
    "The songs are forgettable, the jokes are old, and even the children in the row before us had fallen asleep.",
    "Two thumbs up.",
    "The company said that it would hire five hundred engineers over the next two years.",
    "It rattles, it smells of plastic, and it costs twice as much as the one it replaced.",
    "A quiet, patient drama whose last scene stays with you for days.",
    "Heavy snow closed the pass on Sunday night, and rescuers were still looking for two hikers on Monday.",
    "Not worth the ticket.",
    "The lens is sharp in the middle and a little soft at the edges, which hardly matters for portraits.",
    "Great service: they answered my question within an hour and sent a new cable the same day.",
    "The plot makes no sense at all, and yet I have seldom had so much fun in a cinema.",
)

LEAD_S = 1.0
"""Load before the measured window, or as long as the window where that is shorter: connections, full batches."""
PAUSE_S = 0.01
"""After a failed call: a refusal comes so fast that callers would do nothing but ask."""
CALL_S = 60.0
"""Timeout of a call."""
LONGEST_S = 60.0
"""Of a window whose callers wait longer than it was to last."""


def requests(tasks: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """A task and a text, without end; all tasks and sentences alike often. No text comes twice.

    Equal rows would share a backbone pass, and measure that instead.
    """
    draw = random.Random(seed)
    for number in range(draw.randrange(1000, 2000) * 10_000, sys.maxsize):
        yield draw.choice(tasks), f"{number}. {draw.choice(SENTENCES)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the callers of one run saw."""

    callers: int
    cycles_s: float
    """Sum over the requests that ended within the window: from the end of their caller's one before to their own."""
    latencies_us: list[int]
    """Of those that were answered, in microseconds."""
    errors: dict[str, int]
    """Those that failed, by reason."""
    window_s: float
    grown: dict[str, float]
    """By how much the server's own counts have grown over `window_s`; names as in `counted`."""

    @property
    def rows_per_s(self) -> float:
        """Callers over the mean cycle. Answers by the window's length would hang on where a batch ends in it."""
        return self.callers * len(self.latencies_us) / self.cycles_s


@dataclass(slots=True)
class _Tally:
    """Counts what ends within the window."""

    begins: float
    least: int
    most: int
    """Answers, or failures, that the window is to see."""
    cycles_s: float = 0.0
    latencies_us: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where there are `least`."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where the window has ended: there are `most`, or its time is up."""

    def count(self, cycle_s: float, latency_s: float, reason: str | None, now: float) -> None:
        if now < self.begins or self.over.is_set():
            return
        self.cycles_s += cycle_s
        if reason is None:
            self.latencies_us.append(round(1e6 * latency_s))
        else:
            self.errors[reason] += 1
        ended = len(self.latencies_us) + self.errors.total()
        if ended >= self.least:
            self.enough.set()
        if ended >= self.most:
            self.over.set()


async def run_callers(
    address: str, metrics_url: str, tasks: Sequence[str], *, concurrency: int, seconds: float, most: int, seed: int
) -> Load:
    """Keep `concurrency` requests in flight until the window has lasted `seconds`, or counted `most` of them.

    Where not even one for each caller has ended by then, it lasts until they have, for LONGEST_S at most.
    """
    stream = requests(tasks, seed)
    async with AsyncClient(address, timeout=CALL_S, retry=False) as client:
        if not await client.ready(CALL_S):
            raise BenchmarkError(f"no server answers at {address}")
        tally = _Tally(begins=time.perf_counter() + min(LEAD_S, seconds), least=concurrency, most=most)
        watching = asyncio.create_task(_watch(metrics_url, tally, seconds))
        await asyncio.gather(*(_call(client, stream, tally) for _ in range(concurrency)))
        window_s, grown = await watching
    return Load(
        callers=concurrency,
        cycles_s=tally.cycles_s,
        latencies_us=tally.latencies_us,
        errors=dict(tally.errors),
        window_s=window_s,
        grown=grown,
    )


async def _watch(metrics_url: str, tally: _Tally, seconds: float) -> tuple[float, dict[str, float]]:
    """End the window in time. The server's counts over it, and the time between the two looks at them."""
    await asyncio.sleep(tally.begins - time.perf_counter())
    before, began = await asyncio.to_thread(counted, metrics_url), time.perf_counter()
    await _wait(tally.over, tally.begins + seconds)
    await _wait(tally.enough, tally.begins + LONGEST_S)
    tally.over.set()
    after, ended = await asyncio.to_thread(counted, metrics_url), time.perf_counter()
    return ended - began, {name: value - before.get(name, 0.0) for name, value in after.items()}


async def _wait(event: asyncio.Event, until: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(until - time.perf_counter()):
            await event.wait()


async def _call(client: AsyncClient, stream: Iterator[tuple[str, str]], tally: _Tally) -> None:
    """One caller."""
    before = time.perf_counter()
    while not tally.over.is_set():
        started = time.perf_counter()
        task, text = next(stream)
        reason = None
        try:
            await client.predict(task, [text])
        except SidecastError as error:
            reason = error.reason
        ended = time.perf_counter()
        tally.count(ended - before, ended - started, reason, ended)
        before = ended
        if reason is not None:
            await asyncio.sleep(PAUSE_S)


def measure_load(
    served: Served, tasks: Sequence[str], *, concurrency: int, seconds: float, most: int = 100_000, seed: int = 0
) -> Load:
    """`run_callers` in a process of its own.

    Raises:
        BenchmarkError: no request was answered, or the process failed.
    """
    words = ("--concurrency", concurrency, "--seconds", seconds, "--most", most, "--seed", seed)
    command = [sys.executable, "-m", "benchmarks.load", served.address, served.metrics_url, *tasks, *map(str, words)]
    limit = seconds + LONGEST_S + 3 * CALL_S
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"the load process did not end within {limit:.0f} s") from None
    if done.returncode:
        raise BenchmarkError("the load process failed; read what it said above")
    load = Load(**json.loads(done.stdout))
    if not load.latencies_us:
        why = ", ".join(f"{count} {reason}" for reason, count in load.errors.items()) or "none ended in time"
        raise BenchmarkError(f"no request was answered at concurrency {concurrency}: {why}; try a longer --seconds")
    return load


@click.command()
@click.argument("address")
@click.argument("metrics_url")
@click.argument("tasks", nargs=-1, required=True)
@click.option("--concurrency", type=click.IntRange(1), required=True)
@click.option("--seconds", type=float, required=True)
@click.option("--most", type=click.IntRange(1), required=True)
@click.option("--seed", type=int, required=True)
def main(address: str, metrics_url: str, tasks: tuple[str, ...], **how: Any) -> None:
    """Put load on the server at ADDRESS, and print what its callers saw."""
    with plain_errors():
        click.echo(json.dumps(asdict(asyncio.run(run_callers(address, metrics_url, tasks, **how)))))


if __name__ == "__main__":
    main()
