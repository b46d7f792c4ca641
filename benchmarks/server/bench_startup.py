"""How long does a server of many tasks take to its first answer, and until all of them are resident?

    python -m benchmarks.server.bench_startup                # 1,000 tasks
    python -m benchmarks.server.bench_startup --own-texts    # each task has golden examples of its own

Two servers, started in turns, each in a process of its own. `while loading` is the default: it is ready after its first
loads, and a request for a task that is still loading waits for that task. `loaded first` is ready once all is loaded.
The first request names the task that is loaded last. Seconds count from the start of the process: `ready_s` to its
line on standard output, `answer_s` to the first answer, `resident_s` until every task is resident; `cpu_ms_a_task` is
the process's CPU time from there, by tasks. Tasks have linear heads and a rung on every second block, or the head that
--head names. Golden examples: two texts that all tasks share, or four of its own for each task.
"""

import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.models import Head, Loaded, publish_copies
from benchmarks.harness.samples import BenchmarkError, Column, Figures, Samples, Spread, Variant
from benchmarks.harness.served import counted, serve
from serving.client import Client

TASKS = 1_000
LOADED_FIRST_S = 3600.0
"""As `first_loads_s`: a server that is ready once all is loaded."""
ANSWER_S = 600.0
POLL_S = 0.1
RESIDENT = "sidecast_resident_side_networks"
WHILE_LOADING, LOADED_FIRST = "while loading", "loaded first"
COLUMNS = (
    Column(figure="ready_s", heading="ready, s", digits=2),
    Column(figure="answer_s", heading="first answer, s", digits=2),
    Column(figure="resident_s", heading="all resident, s", digits=2),
    Column(figure="cpu_ms_a_task", heading="CPU ms a task", digits=2),
)


def start(settings: Mapping[str, Any], tasks: int) -> Figures:
    """Start a server, ask for its last task, and wait until all tasks are resident; return the seconds of each."""
    started = time.perf_counter()
    with serve(**settings) as served, Client(served.address) as client:
        ready = time.perf_counter()
        client.predict(f"task-{tasks - 1:05d}", ["is it there"], timeout=ANSWER_S)
        answered = time.perf_counter()
        while counted(served.metrics_url)[RESIDENT] < tasks:
            if time.perf_counter() - answered > ANSWER_S:
                raise BenchmarkError(f"the server did not load {tasks} tasks; read its log above")
            time.sleep(POLL_S)
        resident = time.perf_counter()
        spent = psutil.Process(served.pid).cpu_times()
    return {
        "ready_s": ready - started,
        "answer_s": answered - started,
        "resident_s": resident - started,
        "cpu_ms_a_task": 1e3 * (spent.user + spent.system) / tasks,
    }


def ask(
    loaded: Loaded, how: How, tasks: int = TASKS, head: Head = "linear", own_texts: bool = False
) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    tasks = how.size(tasks, 3)
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        rungs = "auto" if head == "linear" else "all"
        publish_copies(Path(folder), loaded, tasks, head, rungs, own_texts=own_texts)
        common = {"registry": Path(folder) / "registry", **loaded.settings(how.threads)}
        variants = [
            Variant(name=name, measure=partial(start, {**common, **settings}, tasks), warm_up=lambda: None)
            for name, settings in ((WHILE_LOADING, {}), (LOADED_FIRST, {"first_loads_s": LOADED_FIRST_S}))
        ]
        samples = how.turns(variants)
    spreads = {
        "first answer, while loading, s": samples.spread(WHILE_LOADING, "answer_s"),
        "all resident, while loading, s": samples.spread(WHILE_LOADING, "resident_s"),
        "all resident, while loading / loaded first": samples.ratio("resident_s", WHILE_LOADING, LOADED_FIRST),
    }
    return samples, spreads, {"tasks": tasks, "head": head, "rungs": rungs, "own_texts": own_texts}


@click.command()
@click.option("--tasks", type=click.IntRange(1), default=TASKS, show_default=True)
@click.option("--head", type=click.Choice(["linear", "text"]), default="linear", show_default=True)
@click.option("--own-texts", is_flag=True, help="Golden examples of its own for each task, four instead of two.")
@measuring(rounds=3, seconds=0.6)
def main(tasks: int, head: Head, own_texts: bool, **arguments: Any) -> None:
    """Measure the start of a server of many tasks."""
    answer(
        lambda loaded, how: ask(loaded, how, tasks, head, own_texts),
        name="startup",
        title="Starting a server of many tasks",
        columns=COLUMNS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
