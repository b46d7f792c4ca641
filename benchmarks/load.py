"""Load on a server, by the generator of `sidecast bench`, from a process of its own. No torch in that process.

`measure_load`: callers that each send a request, wait for its answer, and send the next. `measure_arrivals`: requests
that arrive at a given rate, however the server fares. Both write a `Job` and start `python -m benchmarks.load`, which
prints one JSON line. It is a process of its own because most callers of these functions compute too, and would hold the
interpreter's lock while answers wait to be read.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import BenchmarkError, plain_errors
from benchmarks.machine import ROOT
from benchmarks.served import Served, counted
from serving.client import AsyncClient
from sidecast.loadtest.asking import ClientAsker
from sidecast.loadtest.inputs import Inputs, Target
from sidecast.loadtest.loops import PAUSE_S
from sidecast.loadtest.measure import Call
from sidecast.loadtest.plan import Closed, Open, Plan
from sidecast.loadtest.runner import Ran, Runner, Steady

LEAD_S = 1.0
"""Load before the measured window: connections, full batches. Callers: as long as the window where that is shorter."""
CALL_S = 60.0
"""Timeout of a call."""
STEADY = Steady(calls=3, longest_s=60.0)
FIELDS = ("sentence",)
"""Of the tasks of `models.make_spec`."""
ALL_IN_FLIGHT = 1_000_000
"""Arrivals wait for no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of the generator: what to ask, of which server, how hard and how long."""

    address: str
    metrics_url: str
    tasks: Sequence[str]
    """Asked alike often."""
    callers: int | None = None
    """Requests in flight ..."""
    rate: float | None = None
    """... or requests a second, at random times."""
    seconds: float
    """Of the window."""
    deadline_s: float | None = None
    """After which an arrival is given up; None: CALL_S."""
    rows: int = 1
    """Of one task, in a request."""
    texts: Sequence[str] | None = None
    """Rows to send; None: built-in sentences with numbers, of which none comes twice: equal rows would share a backbone
    pass, and measure that instead."""
    skew: float = 0.0
    """As of `Inputs`."""
    seed: int = 0

    @property
    def lead_s(self) -> float:
        """Callers keep the server's queue as full as it gets at once; arrivals fill it until the first are given up."""
        return min(LEAD_S, self.seconds) if self.callers else max(LEAD_S, self.deadline_s or 0.0)

    @property
    def plan(self) -> Plan:
        """For the generator."""
        return Plan(
            levels=(Closed(self.callers) if self.callers else Open(self.rate or 0.0),),
            duration_s=self.seconds,
            warmup_s=self.lead_s,
            rows=self.rows,
            timeout_s=self.deadline_s or CALL_S,
            max_in_flight=ALL_IN_FLIGHT,
            seed=self.seed,
        )


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
class Arrivals:
    """What became of the requests that were due within the window."""

    latencies_us: list[int]
    """Of those that were answered in time, from when they were due, in microseconds."""
    errors: dict[str, int]
    """Those that failed or were given up, by reason."""
    window_s: float
    grown: dict[str, float]
    """As in `Load`."""

    @property
    def offered_per_s(self) -> float:
        """Requests per second, failed ones included."""
        return (len(self.latencies_us) + sum(self.errors.values())) / self.window_s

    @property
    def good_per_s(self) -> float:
        """Answered requests per second."""
        return len(self.latencies_us) / self.window_s


def requests(tasks: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """A task and a text, without end, as a `Job` of these tasks sends them: no text comes twice."""
    plan = Plan(levels=(Closed(1),), seed=seed)
    for request in Inputs(_targets(tasks), plan):
        yield request.tasks[0], str(request.rows[0])


def _targets(tasks: Sequence[str]) -> list[Target]:
    return [Target(task, "classification", FIELDS) for task in tasks]


async def run_job(job: Job) -> Load | Arrivals:
    """Put the load on.

    Arrivals go on for `deadline_s` after the window, which keeps the load up until the last that counts has ended.

    Raises:
        BenchmarkError: no server answers, or its metrics cannot be read.
    """
    plan = job.plan
    inputs = Inputs(_targets(job.tasks), plan, texts=job.texts, skew=job.skew)
    async with AsyncClient(job.address, timeout=CALL_S, retry=False) as client:
        if not await client.ready(CALL_S):
            raise BenchmarkError(f"no server answers at {job.address}")
        runner = Runner(
            plan,
            inputs,
            ClientAsker(client, plan),
            scrape=lambda: counted(job.metrics_url),
            steady=STEADY,
            tail_s=job.deadline_s or 0.0,
        )
        [ran] = await runner.run()
    return seen_by_callers(ran, job.callers, job.rows) if job.callers else seen_by_arrivals(ran)


def seen_by_callers(ran: Ran, callers: int, rows: int = 1) -> Load:
    """Of what ended within the window. A caller's cycle is its call, and the pause after it where it failed."""
    ended = [call for call in ran.calls if call.ended in ran.window]
    errors = _errors(ended)
    return Load(
        callers=callers,
        cycles_s=sum(call.latency for call in ended) + PAUSE_S * sum(errors.values()),
        latencies_us=_latencies_us(ended),
        errors=errors,
        window_s=ran.after.at - ran.before.at if ran.after and ran.before else ran.window.seconds,
        grown=_grown(ran),
        rows=rows,
    )


def seen_by_arrivals(ran: Ran) -> Arrivals:
    """Of what was due within the window."""
    due = [call for call in ran.calls if call.due in ran.window]
    return Arrivals(
        latencies_us=_latencies_us(due), errors=_errors(due), window_s=ran.window.seconds, grown=_grown(ran)
    )


def _latencies_us(calls: Sequence[Call]) -> list[int]:
    return [round(1e6 * call.latency) for call in calls if call.failure is None]


def _errors(calls: Sequence[Call]) -> dict[str, int]:
    return dict(Counter(call.failure.reason for call in calls if call.failure is not None))


def _grown(ran: Ran) -> dict[str, float]:
    if ran.before is None or ran.after is None:
        return {}
    return {name: value - ran.before.counts.get(name, 0.0) for name, value in ran.after.counts.items()}


def measure_load(
    served: Served,
    tasks: Sequence[str],
    *,
    concurrency: int,
    seconds: float,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    rows: int = 1,
    skew: float = 0.0,
) -> Load:
    """Keep `concurrency` requests in flight for `seconds`, and longer where calls are long: see `Steady`.

    Args:
        texts, rows, skew: as of `Job`.

    Raises:
        BenchmarkError: no request was answered, or the process failed.
    """
    job = Job(
        address=served.address,
        metrics_url=served.metrics_url,
        tasks=tasks,
        callers=concurrency,
        seconds=seconds,
        rows=rows,
        texts=texts,
        skew=skew,
        seed=seed,
    )
    load = Load(**_apart(job))
    if not load.latencies_us:
        raise BenchmarkError(f"no request was answered at concurrency {concurrency}: {_why(load.errors)}")
    return load


def measure_arrivals(
    served: Served,
    tasks: Sequence[str],
    *,
    rate: float,
    seconds: float,
    deadline_s: float | None = None,
    seed: int = 0,
    texts: Sequence[str] | None = None,
) -> Arrivals:
    """Send `rate` requests a second at random times, whatever becomes of them.

    A request's time counts from when it was due, not from when it was sent: a server that stalls would else be asked
    less while it does.

    Args:
        deadline_s, texts: as of `Job`.

    Raises:
        BenchmarkError: no request was answered in time, or the process failed.
    """
    job = Job(
        address=served.address,
        metrics_url=served.metrics_url,
        tasks=tasks,
        rate=rate,
        seconds=seconds,
        deadline_s=deadline_s,
        texts=texts,
        seed=seed,
    )
    arrivals = Arrivals(**_apart(job))
    if not arrivals.latencies_us:
        raise BenchmarkError(f"no request was answered in time at {rate:.1f} a second: {_why(arrivals.errors)}")
    return arrivals


def _why(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in errors.items()) or "none ended; try a longer --seconds"


def _apart(job: Job) -> dict[str, Any]:
    """What `main` prints in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="sidecast-load-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(asdict(job)), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.load", str(file)]
        limit = job.lead_s + job.seconds + 2 * STEADY.longest_s + 3 * CALL_S
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False, cwd=ROOT)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"the load process did not end within {limit:.0f} s") from None
    if done.returncode:
        raise BenchmarkError("the load process failed; read what it said above")
    return json.loads(done.stdout)


@click.command()
@click.argument("job", type=click.Path(exists=True, path_type=Path))
def main(job: Path) -> None:
    """Put the load of the file JOB on its server, and print what its callers saw."""
    with plain_errors():
        what = Job(**json.loads(job.read_text(encoding="utf-8")))
        click.echo(json.dumps(asdict(asyncio.run(run_job(what)))))


if __name__ == "__main__":
    main()
