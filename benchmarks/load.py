"""Load on a server, from a process of its own. No torch in that process.

`measure_load`: callers that each send a request, wait for its answer, and send the next. `measure_offered`: requests
that arrive at a given rate, however the server fares, each with a deadline. Both start `python -m benchmarks.load`,
which prints one JSON line.
"""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import BenchmarkError, plain_errors
from benchmarks.machine import ROOT
from benchmarks.served import Served, counted
from serving.client import AsyncClient
from serving.client_errors import SidecastError
from sidecast.load.sentences import SENTENCES

LEAD_S = 1.0
"""Load before the measured window, or as long as the window where that is shorter: connections, full batches."""
ENDED = 3
"""Answers for each caller that a window of callers is to see: one that is short against a call sees its luck."""
PAUSE_S = 0.01
"""After a failed call: a refusal comes so fast that callers would do nothing but ask."""
CALL_S = 60.0
"""Timeout of a call."""
LONGEST_S = 60.0
"""Of the load before a window, and of a window, whose callers wait longer than it was to last."""


def requests(tasks: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """A task and a text, without end; all tasks and sentences alike often. No text comes twice.

    Equal rows would share a backbone pass, and measure that instead.
    """
    draw = random.Random(seed)
    for number in range(draw.randrange(1000, 2000) * 10_000, sys.maxsize):
        yield draw.choice(tasks), f"{number}. {draw.choice(SENTENCES)}"


@dataclass(frozen=True, slots=True)
class Mix:
    """What is asked: tasks, texts, rows of one task in a request."""

    tasks: Sequence[str]
    texts: Sequence[str] | None = None
    """As they are, each once before any comes again; None: SENTENCES, numbered."""
    rows: int = 1
    skew: float = 0.0
    """Above 0: instead, the n-th of the texts is asked as often as n to the power of minus this (Zipf's law)."""

    def requests(self, seed: int) -> Iterator[tuple[str, list[str]]]:
        """Tasks and lists of texts, without end."""
        stream = self._stream(seed)
        while True:
            task, text = next(stream)
            yield task, [text, *(next(stream)[1] for _ in range(self.rows - 1))]

    def _stream(self, seed: int) -> Iterator[tuple[str, str]]:
        if self.texts is None:
            return requests(self.tasks, seed)
        return (self._skewed if self.skew else self._shuffled)(self.texts, random.Random(seed))

    def _skewed(self, texts: Sequence[str], draw: random.Random) -> Iterator[tuple[str, str]]:
        weights = list(accumulate((1 + place) ** -self.skew for place in range(len(texts))))
        while True:
            yield draw.choice(self.tasks), draw.choices(texts, cum_weights=weights)[0]

    def _shuffled(self, texts: Sequence[str], draw: random.Random) -> Iterator[tuple[str, str]]:
        while True:
            for text in draw.sample(texts, len(texts)):
                yield draw.choice(self.tasks), text


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
    rows: int = 1
    """Of each request."""

    @property
    def rows_per_s(self) -> float:
        """Callers over the mean cycle. Answers by the window's length would hang on where a batch ends in it."""
        return self.rows * self.callers * len(self.latencies_us) / self.cycles_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What became of requests that arrived at a given rate."""

    sent: int
    """Within the window."""
    in_time: int
    """Of these, answered within their deadline."""
    errors: dict[str, int]
    window_s: float
    """The time in which they arrived."""
    grown: dict[str, float]
    """As in `Load`."""

    @property
    def offered_per_s(self) -> float:
        return self.sent / self.window_s

    @property
    def good_per_s(self) -> float:
        return self.in_time / self.window_s


@dataclass(slots=True)
class _Tally:
    """Counts what ends within the window. Before it, waits until each caller has ended a call.

    Those that all begin at once end the short texts first: what ends then says nothing of what goes on.
    """

    callers: int
    most: int
    """Answers, or failures, that the window is to see."""
    callers_ended: int = 0
    """Of the callers, those that have ended a call."""
    begun: bool = False
    """The window has."""
    cycles_s: float = 0.0
    latencies_us: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where every caller has ended a call."""
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where ENDED for each caller, or `most`, are counted."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where the window has ended: there are `most`, or its time is up."""

    def came(self) -> None:
        """A caller has ended its first call."""
        self.callers_ended += 1
        if self.callers_ended == self.callers:
            self.ready.set()

    def count(self, cycle_s: float, latency_s: float, reason: str | None) -> None:
        if not self.begun or self.over.is_set():
            return
        self.cycles_s += cycle_s
        if reason is None:
            self.latencies_us.append(round(1e6 * latency_s))
        else:
            self.errors[reason] += 1
        ended = len(self.latencies_us) + self.errors.total()
        if ended >= min(ENDED * self.callers, self.most):
            self.enough.set()
        if ended >= self.most:
            self.over.set()


async def run_callers(
    address: str, metrics_url: str, mix: Mix, *, concurrency: int, seconds: float, most: int, seed: int
) -> Load:
    """Keep `concurrency` requests in flight until the window has lasted `seconds`, or counted `most` of them.

    Where not ENDED for each caller have ended by then, it lasts until they have, for LONGEST_S at most.
    """
    stream = mix.requests(seed)
    async with AsyncClient(address, timeout=CALL_S, retry=False) as client:
        if not await client.ready(CALL_S):
            raise BenchmarkError(f"no server answers at {address}")
        tally = _Tally(callers=concurrency, most=most)
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
        rows=mix.rows,
    )


async def run_offered(
    address: str, metrics_url: str, mix: Mix, *, rate: float, deadline_s: float, seconds: float, seed: int
) -> Offered:
    """Send requests at random times, `rate` of them a second on average, and wait for none.

    Those of the first LEAD_S, or deadline, fill the server's queue and are not counted, nor are those after the window,
    which keep the load up until the last that counts has ended. Each is given up after `deadline_s`.
    """
    stream, draw, calls = mix.requests(seed), random.Random(seed), set[asyncio.Task[str | None]]()
    lead = max(LEAD_S, deadline_s)
    counting: list[asyncio.Task[str | None]] = []
    before: dict[str, float] = {}
    async with AsyncClient(address, timeout=CALL_S, retry=False) as client:
        if not await client.ready(CALL_S):
            raise BenchmarkError(f"no server answers at {address}")
        at = started = time.perf_counter()
        while at < started + lead + seconds + deadline_s:
            at += draw.expovariate(rate)
            await asyncio.sleep(at - time.perf_counter())
            call = asyncio.create_task(_reason(client, *next(stream), deadline_s))
            calls.add(call)
            call.add_done_callback(calls.discard)
            if lead <= at - started < lead + seconds:
                before = before or await asyncio.to_thread(counted, metrics_url)
                counting.append(call)
        after = await asyncio.to_thread(counted, metrics_url)
        await asyncio.gather(*calls)
    reasons = [call.result() for call in counting]
    return Offered(
        sent=len(reasons),
        in_time=reasons.count(None),
        errors=dict(Counter(reason for reason in reasons if reason is not None)),
        window_s=seconds,
        grown={name: value - before.get(name, 0.0) for name, value in after.items()},
    )


async def _reason(client: AsyncClient, task: str, texts: list[str], timeout_s: float | None = None) -> str | None:
    """Ask; None where it was answered, or else why not."""
    try:
        await client.predict(task, texts, timeout=timeout_s)
    except SidecastError as error:
        return error.reason
    return None


async def _watch(metrics_url: str, tally: _Tally, seconds: float) -> tuple[float, dict[str, float]]:
    """Begin and end the window in time. The server's counts over it, and the time between the two looks at them."""
    await asyncio.sleep(min(LEAD_S, seconds))
    await _wait(tally.ready, time.perf_counter() + LONGEST_S)
    before, began = await asyncio.to_thread(counted, metrics_url), time.perf_counter()
    tally.begun = True
    await _wait(tally.over, began + seconds)
    await _wait(tally.enough, began + LONGEST_S)
    tally.over.set()
    after, ended = await asyncio.to_thread(counted, metrics_url), time.perf_counter()
    return ended - began, {name: value - before.get(name, 0.0) for name, value in after.items()}


async def _wait(event: asyncio.Event, until: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(until - time.perf_counter()):
            await event.wait()


async def _call(client: AsyncClient, stream: Iterator[tuple[str, list[str]]], tally: _Tally) -> None:
    """One caller."""
    before, first = time.perf_counter(), True
    while not tally.over.is_set():
        started = time.perf_counter()
        reason = await _reason(client, *next(stream))
        ended = time.perf_counter()
        if first:
            tally.came()
        tally.count(ended - before, ended - started, reason)
        before, first = ended, False
        if reason is not None:
            await asyncio.sleep(PAUSE_S)


def measure_load(
    served: Served,
    tasks: Sequence[str],
    *,
    concurrency: int,
    seconds: float,
    most: int = 100_000,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    rows: int = 1,
    skew: float = 0.0,
) -> Load:
    """`run_callers` in a process of its own.

    Args:
        texts, rows, skew: as of `Mix`.

    Raises:
        BenchmarkError: no request was answered, or the process failed.
    """
    words = ("--concurrency", concurrency, "--most", most)
    load = Load(**_apart(served, Mix(tasks, texts, rows, skew), words, seconds, seed))
    if not load.latencies_us:
        raise BenchmarkError(f"no request was answered at concurrency {concurrency}: {_why(load.errors)}")
    return load


def measure_offered(
    served: Served,
    tasks: Sequence[str],
    *,
    rate: float,
    deadline_s: float,
    seconds: float,
    seed: int = 0,
    texts: Sequence[str] | None = None,
) -> Offered:
    """`run_offered` in a process of its own.

    Raises:
        BenchmarkError: no request was answered in time, or the process failed.
    """
    words = ("--rate", rate, "--deadline", deadline_s)
    offered = Offered(**_apart(served, Mix(tasks, texts), words, seconds, seed))
    if not offered.in_time:
        raise BenchmarkError(f"of {offered.sent} requests none was answered in time: {_why(offered.errors)}")
    return offered


def _why(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in errors.items()) or "none ended; try a longer --seconds"


def _apart(served: Served, mix: Mix, words: Sequence[object], seconds: float, seed: int) -> dict[str, Any]:
    """What `main` prints in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="sidecast-load-") as folder:
        asked = Path(folder) / "mix.json"
        asked.write_text(json.dumps(asdict(mix)), encoding="utf-8")
        more = map(str, ("--seconds", seconds, "--seed", seed, *words))
        command = [sys.executable, "-m", "benchmarks.load", served.address, served.metrics_url, str(asked), *more]
        limit = seconds + 2 * LONGEST_S + 3 * CALL_S
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False, cwd=ROOT)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"the load process did not end within {limit:.0f} s") from None
    if done.returncode:
        raise BenchmarkError("the load process failed; read what it said above")
    return json.loads(done.stdout)


@click.command()
@click.argument("address")
@click.argument("metrics_url")
@click.argument("mix", type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", type=float, required=True)
@click.option("--seed", type=int, required=True)
@click.option("--concurrency", type=click.IntRange(1), help="Callers that wait for their answers ...")
@click.option("--most", type=click.IntRange(1), default=100_000)
@click.option("--rate", type=float, help="... or requests a second, whatever becomes of them.")
@click.option("--deadline", type=float, default=1.0)
def main(
    address: str,
    metrics_url: str,
    mix: Path,
    seconds: float,
    seed: int,
    concurrency: int | None,
    most: int,
    rate: float | None,
    deadline: float,
) -> None:
    """Put load on the server at ADDRESS, of what the file MIX says, and print what its callers saw."""
    with plain_errors():
        what = Mix(**json.loads(mix.read_text(encoding="utf-8")))
        if rate is None:
            running = run_callers(
                address, metrics_url, what, concurrency=concurrency or 1, seconds=seconds, most=most, seed=seed
            )
        else:
            running = run_offered(
                address, metrics_url, what, rate=rate, deadline_s=deadline, seconds=seconds, seed=seed
            )
        click.echo(json.dumps(asdict(asyncio.run(running))))


if __name__ == "__main__":
    main()
