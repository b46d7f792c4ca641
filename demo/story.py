"""The demo's story, step by step. Everything a user would type is run as they would type it, through the commands."""

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from demo.backbone import get_backbone
from demo.commands import Server, run_command, run_json
from demo.dataset import DemoData, get_dataset
from demo.downloads import cache_folder
from demo.folders import DemoError
from demo.report import TaskResult, show_swap, show_tasks
from demo.swap import swap_under_load
from demo.zero_shot import majority, zero_shot

MOVIE, PRODUCT, TWEET = "movie-sentiment", "product-sentiment", "tweet-sentiment"
QUICK_ROWS = 800
"""Rows that version 1 of the movie task learns from; version 2 learns from all."""
EPOCHS = {PRODUCT: 3, TWEET: 3, MOVIE: 2}

SENTENCES = ("a warm, funny and deeply moving film", "the plot is thin and the jokes fall flat")


def tell(folder: Path, rows: int | None = None) -> None:
    """Run the demo in `folder`; finished trainings there are used again.

    Args:
        rows: use the first so many rows of each file alone; None: all.

    Raises:
        DemoError: a step failed; says what to do.
    """
    started, console = time.monotonic(), Console(width=None if sys.stdout.isatty() else 110)
    say = Narrator(console)
    say.step("a real backbone and real, human-rated text")
    with Progress(console=console) as bars:
        backbone = get_backbone(cache_folder(), bars)
        data = get_dataset(cache_folder(), bars)
    if rows is not None:
        folder = folder / f"first-{rows}-rows"
        data = first_rows(data, folder / "data", rows)
    folder.mkdir(parents=True, exist_ok=True)
    say.step("train side networks: the backbone stays frozen, each is under 1 % of it")
    runs = train_all(folder, backbone, data)
    say.step("publish version 1 of each task")
    registry = folder / "registry"
    shutil.rmtree(registry, ignore_errors=True)  # each telling has its own history; the runs are kept
    for run in (runs["quick"], runs[PRODUCT], runs[TWEET]):
        run_command("publish", run, "--registry", registry)
    say.step("serve: one process, one backbone, every task of the registry")
    with Server(backbone, registry) as server:
        say.step("ask: command line, Python, and Triton's own client")
        ask_three_ways(server)
        say.step("publish a better version while clients keep calling, then roll back")
        log = swap_under_load(server.address, MOVIE, runs[MOVIE], registry, SENTENCES)
        run_command("history", MOVIE, "--server", server.address)
        say.step("score every task on held-out rows")
        run_command("promote", MOVIE, "2", "--server", server.address)
        results = score_all(server, folder, backbone, data)
    show_tasks(console, results)
    show_swap(console, log)
    if log.failures:
        raise DemoError(
            f"{len(log.failures)} requests failed during the swap", "this must not happen; please report it"
        )
    console.print(f"\nThe demo took {time.monotonic() - started:.0f} s. Its runs and registry are in {folder}/.")


class Narrator:
    """Numbers the steps."""

    def __init__(self, console: Console) -> None:
        self._console, self._count = console, 0

    def step(self, text: str) -> None:
        self._count += 1
        self._console.rule(f"[bold]{self._count}. {text}", align="left")


def train_all(folder: Path, backbone: Path, data: DemoData) -> dict[str, Path]:
    """The runs of every task, and the quick one of the movie task."""
    quick = _first_rows(data.tasks[MOVIE].train, folder / "data" / "quick", QUICK_ROWS)
    trainings = {"quick": (MOVIE, quick, 1)}
    trainings |= {task: (task, data.tasks[task].train, epochs) for task, epochs in EPOCHS.items()}
    runs = {}
    for name, (task, train, epochs) in trainings.items():
        runs[name] = folder / "runs" / name
        files = ("--train", train, "--validation", data.tasks[task].validation, "--output", runs[name])
        run_command("train", task, "--backbone", backbone, *files, "--epochs", epochs)
    return runs


def first_rows(data: DemoData, folder: Path, count: int) -> DemoData:
    """The same data with every file cut to its first `count` rows."""
    tasks = {
        name: replace(
            task, files={split: _first_rows(path, folder / name, count) for split, path in task.files.items()}
        )
        for name, task in data.tasks.items()
    }
    return replace(data, tasks=tasks)


def _first_rows(source: Path, folder: Path, count: int) -> Path:
    target = folder / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    target.write_text("".join(lines), encoding="utf-8")
    return target


def ask_three_ways(server: Server) -> None:
    """The same question through the command line, the Python client and tritonclient."""
    from demo.commands import run_python
    from sidecast import Client

    run_command("tasks", "--server", server.address)
    run_command("predict", MOVIE, *SENTENCES, "--server", server.address)
    with Client(server.address) as client:
        tasks = [MOVIE, PRODUCT, TWEET]
        print(f'>>> Client("{server.address}").predict_tasks({tasks}, ["{SENTENCES[0]}"])   # one backbone pass')
        for task, outcome in client.predict_tasks(tasks, [SENTENCES[0]]).items():
            print(f"    {task}: {outcome if isinstance(outcome, Exception) else outcome[0]}")
    run_python("demo.ask_triton", server.address, MOVIE, *SENTENCES)


def score_all(server: Server, folder: Path, backbone: Path, data: DemoData) -> list[TaskResult]:
    """Each task's score on its test rows: as served, by the majority class, by the bare backbone."""
    results = []
    for task in (MOVIE, PRODUCT, TWEET):
        test = data.tasks[task].test
        served = run_json("evaluate", task, "--data", test, "--server", server.address)
        kept = folder / "zero-shot" / f"{task}-{data.sha256[:12]}.json"
        results.append(
            TaskResult(
                task=task,
                metric=served["metric"],
                rows=served["rows"],
                version=served["version"],
                score=served["score"],
                majority=majority(task, data.tasks[task].train, test),
                zero_shot=_zero_shot(kept, backbone, task, test),
            )
        )
    return results


def _zero_shot(kept: Path, backbone: Path, task: str, test: Path) -> float:
    """The bare backbone's score, computed once per demo folder."""
    if not kept.is_file():
        value = zero_shot(backbone, task, test)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(value), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))
