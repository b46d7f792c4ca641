"""What does a busy neighbour, or a CPU quota, cost a server, and what helps?

    python -m benchmarks.server.bench_neighbours                                             # six minutes a round
    python -m benchmarks.server.bench_neighbours --beside "fixed threads" --rounds 5 --save  # against one other server

Servers with other settings, each started anew for each measurement: the defaults; as many threads as cores, whatever
the neighbours do; the same with `openmp_spins = 0`, so that threads that wait sleep at once, and with 3000; one thread.
Single rows arrive at --rate a second: on a quiet machine, while a process of ours keeps one core busy, and with a CPU
quota of 1.5 cores where this process may make a control group (it leaves those rounds out elsewhere, and says so). And
on a quiet machine 64 callers that wait for their answers, for the throughput at saturation. Run it alone: other work on
the machine counts as a neighbour, too.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.load import measure_arrivals, measure_load
from benchmarks.harness.models import HEADS, Loaded, publish_tasks
from benchmarks.harness.samples import Column, Figures, Samples, Spread, Variant, quantile
from benchmarks.harness.served import serve
from serving.cores import CGROUP

TASKS = 8
CALLERS = 64
QUOTA_CORES = 1.5
PERIOD_US = 100_000
QUICK_S = 1.0
CORES = os.cpu_count() or 1
SERVERS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "fixed threads": {"threads": CORES},
    "no spinning": {"threads": CORES, "openmp_spins": 0},
    "short spinning": {"threads": CORES, "openmp_spins": 3000},
    "one thread": {"threads": 1},
}
OTHERS = tuple(name for name in SERVERS if name != "defaults")
QUIET, NEIGHBOUR, QUOTA, SATURATED = "quiet", "busy core", "quota", "saturated"
COLUMNS = (
    Column(figure="p50_ms", heading="p50, ms"),
    Column(figure="p99_ms", heading="p99, ms"),
    Column(figure="rows_per_s", heading="rows/s"),
    Column(figure="errors", heading="errors", digits=0),
)


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy with a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def quota() -> Iterator[Path]:
    """Start processes within a control group that has QUOTA_CORES; this process is in it meanwhile. Yields the group.

    Raises:
        OSError: no such group can be made here.
    """
    v1 = CGROUP / "cpu"
    parent = v1 if v1.is_dir() else CGROUP
    group = parent / f"sidecast-bench-{os.getpid()}"
    before = _own_group(parent)
    group.mkdir()
    try:
        limit = int(QUOTA_CORES * PERIOD_US)
        if parent == v1:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(limit))
        else:
            (group / "cpu.max").write_text(f"{limit} {PERIOD_US}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield group
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))


def remove(group: Path) -> None:
    """Remove a control group; one whose processes are still ending stays."""
    with contextlib.suppress(OSError):
        group.rmdir()


def _own_group(parent: Path) -> Path:
    """This process's CPU control group below `parent`."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" if parent == CGROUP else "cpu" in controllers.split(","):
            return parent / path.strip("/")
    return parent


def can_limit() -> bool:
    """Whether a process may be given a CPU quota here."""
    try:
        with quota() as group:
            pass
    except OSError:
        return False
    remove(group)
    return True


class Neighbourhood:
    """One server with some settings, and what surrounds it."""

    def __init__(self, name: str, settings: Mapping[str, Any], tasks: list[str], how: How, rate: float) -> None:
        self.name = name
        self._settings, self._tasks, self._how, self._rate = settings, tasks, how, rate
        self._seconds = QUICK_S if how.quick else how.seconds

    def variants(self, limits: bool) -> list[Variant]:
        """Return what is measured; `limits`: also with a CPU quota."""
        around = {QUIET: contextlib.nullcontext, NEIGHBOUR: busy_core, **({QUOTA: quota} if limits else {})}
        measures: dict[str, Callable[[], Figures]] = {
            what: partial(self._arrivals, surroundings) for what, surroundings in around.items()
        }
        measures[SATURATED] = self._saturated
        return [
            Variant(name=f"{self.name}, {what}", measure=measure, warm_up=lambda: None)
            for what, measure in measures.items()
        ]

    def _arrivals(self, surroundings: Any) -> Figures:
        with contextlib.ExitStack() as stack:
            if surroundings is quota:  # the server starts in the group; the callers do not
                with quota() as group:
                    stack.callback(remove, group)
                    served = stack.enter_context(serve(**self._settings))
            else:
                served = stack.enter_context(serve(**self._settings))
                stack.enter_context(surroundings())
            seen = measure_arrivals(served, self._tasks, rate=self._rate, seconds=self._seconds, seed=self._how.seed)
        milliseconds = [latency / 1e3 for latency in seen.latencies_us]
        return {
            "p50_ms": quantile(milliseconds, 0.5),
            "p99_ms": quantile(milliseconds, 0.99),
            "errors": sum(seen.errors.values()),
        }

    def _saturated(self) -> Figures:
        callers = 4 if self._how.quick else CALLERS
        with serve(**self._settings) as served:
            seen = measure_load(served, self._tasks, concurrency=callers, seconds=self._seconds, seed=self._how.seed)
        return {"rows_per_s": seen.rows_per_s, "errors": sum(seen.errors.values())}


def ask(
    loaded: Loaded, how: How, rate: float = 20.0, others: Sequence[str] = OTHERS
) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure the defaults and `others` of SERVERS; return samples, ratios and settings."""
    servers = {name: settings for name, settings in SERVERS.items() if name == "defaults" or name in others}
    limits = can_limit()
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        registry = publish_tasks(Path(folder), loaded, how.size(TASKS, 2), HEADS["mixed"], how.seed)
        tasks = sorted(registry.state().tasks)
        common = {"registry": Path(folder) / "registry", **loaded.settings(how.threads)}
        houses = [Neighbourhood(name, {**common, **extra}, tasks, how, rate) for name, extra in servers.items()]
        samples = how.turns([variant for house in houses for variant in house.variants(limits)])
    spreads = {}
    for name in servers:
        for what in (NEIGHBOUR, *([QUOTA] if limits else [])):
            spreads[f"p99, {name}, {what} / {QUIET}"] = samples.ratio("p99_ms", f"{name}, {what}", f"{name}, {QUIET}")
        if name != "defaults":
            ours, usual = f"{name}, {SATURATED}", f"defaults, {SATURATED}"
            spreads[f"saturated, defaults / {name}"] = samples.ratio("rows_per_s", usual, ours)
    return samples, spreads, {"rate": rate, "tasks": TASKS, "callers": CALLERS, "quota": limits}


@click.command()
@click.option("--rate", type=click.FloatRange(0.1), default=20.0, show_default=True, help="Single rows a second.")
@click.option("--beside", type=click.Choice(OTHERS), multiple=True, help="Some of the other servers.  [default: all]")
@measuring(rounds=1, seconds=8)
def main(rate: float, beside: tuple[str, ...], **arguments: Any) -> None:
    """Measure a server beside a busy core and under a CPU quota."""
    answer(
        lambda loaded, how: ask(loaded, how, rate, beside or OTHERS),
        name="neighbours",
        title="A server beside a busy neighbour",
        columns=COLUMNS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
