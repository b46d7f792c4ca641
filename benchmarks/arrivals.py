"""Requests that arrive at a steady rate, however the server fares, and how long each took. No torch in that process.

A request's time counts from when it was due, not from when this process came to send it: a server that stalls would
else be asked less while it does. `measure_arrivals` starts `python -m benchmarks.arrivals`, which prints one JSON line.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click

from benchmarks.harness import BenchmarkError, plain_errors
from benchmarks.load import CALL_S, LEAD_S, Mix
from benchmarks.machine import ROOT
from benchmarks.served import Served, counted
from serving.client import AsyncClient
from serving.client_errors import SidecastError


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """What became of the requests that were due within the window."""

    latencies_us: list[int]
    """Of those that were answered, from when they were due, in microseconds."""
    errors: dict[str, int]
    window_s: float
    grown: dict[str, float]
    """By how much the server's own counts have grown; names as in `counted`."""


@dataclass(slots=True)
class _Callers:
    """Sends each request when it is due, and waits for none."""

    client: AsyncClient
    calls: set["asyncio.Task[tuple[float, str | None]]"]

    def send(self, due: float, task: str, texts: list[str]) -> "asyncio.Task[tuple[float, str | None]]":
        call = asyncio.create_task(self._ask(due, task, texts))
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)
        return call

    async def _ask(self, due: float, task: str, texts: list[str]) -> tuple[float, str | None]:
        reason = None
        try:
            await self.client.predict(task, texts)
        except SidecastError as error:
            reason = error.reason
        return time.perf_counter() - due, reason


async def run_arrivals(
    address: str, metrics_url: str, tasks: Sequence[str], *, rate: float, seconds: float, seed: int
) -> Arrivals:
    """`rate` requests a second at random times. Those of the first LEAD_S are not counted."""
    stream, draw = Mix(tasks).requests(seed), random.Random(seed)
    counting: list[asyncio.Task[tuple[float, str | None]]] = []
    before: dict[str, float] = {}
    async with AsyncClient(address, timeout=CALL_S, retry=False) as client:
        if not await client.ready(CALL_S):
            raise BenchmarkError(f"no server answers at {address}")
        callers = _Callers(client, set())
        due = started = time.perf_counter()
        while (due := due + draw.expovariate(rate)) < started + LEAD_S + seconds:
            await asyncio.sleep(due - time.perf_counter())
            call = callers.send(due, *next(stream))
            if due >= started + LEAD_S:
                before = before or await asyncio.to_thread(counted, metrics_url)
                counting.append(call)
        await asyncio.gather(*callers.calls)
        after = await asyncio.to_thread(counted, metrics_url)
    ended = [call.result() for call in counting]
    return Arrivals(
        latencies_us=[round(1e6 * latency_s) for latency_s, reason in ended if reason is None],
        errors=dict(Counter(reason for _, reason in ended if reason is not None)),
        window_s=seconds,
        grown={name: value - before.get(name, 0.0) for name, value in after.items()},
    )


def measure_arrivals(served: Served, tasks: Sequence[str], *, rate: float, seconds: float, seed: int) -> Arrivals:
    """`run_arrivals` in a process of its own.

    Raises:
        BenchmarkError: no request was answered, or the process failed.
    """
    words = ["--rate", rate, "--seconds", seconds, "--seed", seed, *tasks]
    command = [sys.executable, "-m", "benchmarks.arrivals", served.address, served.metrics_url, *map(str, words)]
    limit = LEAD_S + seconds + 3 * CALL_S
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"the load process did not end within {limit:.0f} s") from None
    if done.returncode:
        raise BenchmarkError("the load process failed; read what it said above")
    arrivals = Arrivals(**json.loads(done.stdout))
    if not arrivals.latencies_us:
        raise BenchmarkError(f"no request was answered at {rate:.1f} a second: {arrivals.errors}")
    return arrivals


@click.command()
@click.argument("address")
@click.argument("metrics_url")
@click.argument("tasks", nargs=-1, required=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), required=True)
@click.option("--seconds", type=float, required=True)
@click.option("--seed", type=int, required=True)
def main(address: str, metrics_url: str, tasks: tuple[str, ...], rate: float, seconds: float, seed: int) -> None:
    """Ask the TASKS of the server at ADDRESS, and print how long each request took."""
    with plain_errors():
        running = run_arrivals(address, metrics_url, tasks, rate=rate, seconds=seconds, seed=seed)
        click.echo(json.dumps(asdict(asyncio.run(running))))


if __name__ == "__main__":
    main()
