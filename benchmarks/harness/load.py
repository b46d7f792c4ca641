"""Puts load on a server with the generator of `sidecast bench`, in a process of its own, without torch.

`measure_load`: callers that send a request, wait for its answer, and send the next. `measure_arrivals`: requests that
arrive at a fixed rate, independent of the answers. Both write a `Job` and start `python -m benchmarks.harness.load`,
which prints one JSON line. It is a process of its own because most users of these functions compute too, and would
hold the interpreter's lock while answers wait to be read.
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

from benchmarks.harness.machine import ROOT
from benchmarks.harness.samples import BenchmarkError, plain_errors
from benchmarks.harness.served import Served, counted
from serving.client import AsyncClient
from sidecast.loadtest.asking import ClientAsker
from sidecast.loadtest.inputs import Inputs, Target
from sidecast.loadtest.loops import PAUSE_S
from sidecast.loadtest.measure import Call
from sidecast.loadtest.plan import Closed, Open, Plan
from sidecast.loadtest.runner import Ran, Runner, Steady

LEAD_S = 1.0
"""Seconds of load before the measured window, to open connections and fill batches; for callers at most its length."""
CALL_S = 60.0
"""Timeout of a call."""
STEADY = Steady(calls=3, longest_s=60.0)
FIELDS = ("sentence",)
"""Fields of the tasks of `models.make_spec`."""
ALL_IN_FLIGHT = 1_000_000
"""So large that an arrival never waits for another."""

TOO_LATE = {"TOO_SLOW", "DEADLINE_EXPIRED"}
"""Reasons of requests that an overloaded server did not answer in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of the generator."""

    address: str
    metrics_url: str
    tasks: Sequence[str]
    """Tasks, with equal shares of the requests."""
    callers: int | None = None
    """Number of requests in flight; or else `rate`."""
    rate: float | None = None
    """Requests a second, at random times."""
    seconds: float
    """Length of the window."""
    deadline_s: float | None = None
    """Deadline of an arrival; None: CALL_S."""
    rows: int = 1
    """Rows of a request."""
    texts: Sequence[str] | None = None
    """Rows to send; None: numbered built-in sentences, none of which comes twice, because equal rows would share a
    backbone pass."""
    skew: float = 0.0
    """As in `Inputs`."""
    seed: int = 0

    @property
    def lead_s(self) -> float:
        """Seconds until the load is steady. Callers fill the queue at once; arrivals until the first deadlines pass."""
        return min(LEAD_S, self.seconds) if self.callers else max(LEAD_S, self.deadline_s or 0.0)

    @property
    def plan(self) -> Plan:
        """The plan of the generator."""
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
    """Result of one run of callers."""

    callers: int
    cycles_s: float
    """Sum over the requests that ended within the window: seconds from the end of the caller's previous request."""
    latencies_us: list[int]
    """Microseconds of the answered requests."""
    errors: dict[str, int]
    """Number of failed requests, by reason."""
    window_s: float
    grown: dict[str, float]
    """Growth of the server's metrics over `window_s`; names as in `counted`."""
    rows: int = 1
    """Rows of each request."""

    @property
    def rows_per_s(self) -> float:
        """Rows a second: callers over the mean cycle. Answers over the window would depend on when a batch ends."""
        return self.rows * self.callers * len(self.latencies_us) / self.cycles_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Result of the requests that were due within the window."""

    latencies_us: list[int]
    """Microseconds of the requests answered in time, from when they were due."""
    errors: dict[str, int]
    """Number of failed and late requests, by reason."""
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
    """Yield endless (task, text) as a `Job` of these tasks sends them; no text comes twice."""
    plan = Plan(levels=(Closed(1),), seed=seed)
    for request in Inputs(_targets(tasks), plan):
        yield request.tasks[0], str(request.rows[0])


def _targets(tasks: Sequence[str]) -> list[Target]:
    return [Target(task, "classification", FIELDS) for task in tasks]


async def run_job(job: Job) -> Load | Arrivals:
    """Run the job.

    Arrivals continue for `deadline_s` after the window, so that the load is constant until the last counted one ends.

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
    """Return the load of the calls that ended within the window. A cycle includes the pause after a failed call."""
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
    """Return the result of the calls that were due within the window."""
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
        texts, rows, skew: as in `Job`.

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
    load = Load(**_run_process(job))
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
    """Send `rate` requests a second at random times, without waiting for answers.

    The time of a request counts from when it was due, not from when it was sent: else a stalled server would get fewer
    requests while it stalls.

    Args:
        deadline_s, texts: as in `Job`.

    Raises:
        BenchmarkError: the process failed, or no request was answered. With a deadline, none may be answered in time.
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
    arrivals = Arrivals(**_run_process(job))
    if not arrivals.latencies_us and (deadline_s is None or not arrivals.errors or arrivals.errors.keys() - TOO_LATE):
        raise BenchmarkError(f"no request was answered at {rate:.1f} a second: {_why(arrivals.errors)}")
    return arrivals


def _why(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in errors.items()) or "none ended; try a longer --seconds"


def _run_process(job: Job) -> dict[str, Any]:
    """Run the job in a process of its own; return what it prints."""
    with tempfile.TemporaryDirectory(prefix="sidecast-load-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(asdict(job)), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.harness.load", str(file)]
        limit = job.lead_s + job.seconds + 2 * STEADY.longest_s + 3 * CALL_S
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False, cwd=ROOT)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"the load process did not end within {limit:.0f} s") from None
    if done.returncode:
        raise BenchmarkError("the load process failed; read its error above")
    return json.loads(done.stdout)


@click.command()
@click.argument("job", type=click.Path(exists=True, path_type=Path))
def main(job: Path) -> None:
    """Run the job of the file JOB, and print its result."""
    with plain_errors():
        parsed = Job(**json.loads(job.read_text(encoding="utf-8")))
        click.echo(json.dumps(asdict(asyncio.run(run_job(parsed)))))


if __name__ == "__main__":
    main()
