"""The demo's story, step by step. Every step is a command that a user would type, and runs as one."""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from demo.backbone import get_backbone
from demo.commands import Commands, Server
from demo.dataset import DemoData, get_dataset
from demo.downloads import cache_folder
from demo.folders import DemoError
from demo.report import TaskResult, show_swap, show_tasks
from demo.swap import swap_under_load
from demo.zero_shot import majority, zero_shot

MOVIE = "movie-sentiment"
PRODUCT = "product-sentiment"
TWEET = "tweet-sentiment"
SENTENCES = ("a warm, funny and deeply moving film", "the plot is thin and the jokes fall flat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much work the story does."""

    quick_rows: int = 800
    """Rows that version 1 of the movie task is trained on; version 2 is trained on all."""
    epochs: Mapping[str, int] = field(default_factory=lambda: {PRODUCT: 3, TWEET: 3, MOVIE: 2})
    stay_s: float = 3.0
    """How long each version serves during the swap, in seconds."""


def get_inputs(narrator: "Narrator") -> tuple[Path, DemoData]:
    """The real backbone's folder and the real, human-rated text, from the cache or fetched into it.

    Raises:
        DemoError: one of them cannot be had; says why and what to do.
    """
    narrator.step("a real backbone and real, human-rated text")
    with Progress(console=narrator.console) as bars:
        return get_backbone(cache_folder(), bars), get_dataset(cache_folder(), bars)


def tell(
    folder: Path,
    backbone: Path,
    data: DemoData,
    sizes: Sizes | None = None,
    commands: Commands | None = None,
    narrator: "Narrator | None" = None,
) -> None:
    """Run the demo in `folder`; finished trainings there are used again.

    Args:
        narrator: goes on with its numbers; None: a new one.

    Raises:
        DemoError: a step failed; says what to do.
    """
    sizes = sizes or Sizes()
    commands = commands or Commands()
    say = narrator or Narrator()
    console = say.console
    folder.mkdir(parents=True, exist_ok=True)
    say.step("train side networks: the backbone stays frozen, each is under 1 % of it")
    runs = train_all(folder, backbone, data, sizes, commands)
    say.step("publish version 1 of each task")
    registry = folder / "registry"
    shutil.rmtree(registry, ignore_errors=True)  # each telling has a new history; the runs are kept
    for run in (runs["quick"], runs[PRODUCT], runs[TWEET]):
        commands.run("publish", run, "--registry", registry)
    say.step("serve: one process, one backbone, every task of the registry")
    with Server(backbone, registry) as server:
        say.step("ask: command line, Python, and Triton's own client")
        ask_three_ways(server.address, commands)
        say.step("publish a better version while clients keep calling, then roll back")
        log = swap_under_load(server.address, MOVIE, runs[MOVIE], registry, SENTENCES, sizes.stay_s, commands)
        commands.run("history", MOVIE, "--server", server.address)
        say.step("score every task on held-out rows")
        commands.run("promote", MOVIE, "2", "--server", server.address)
        results = score_all(server.address, folder, backbone, data, commands)
    show_tasks(console, results)
    show_swap(console, log)
    if log.failures:
        what = f"{len(log.failures)} requests failed during the swap"
        raise DemoError(what, "this must not happen; please report it")
    console.print(f"\nThe demo took {say.seconds:.0f} s. Its runs and registry are in {folder}/.")


class Narrator:
    """Numbers the steps, prints their titles, and knows when the story began."""

    def __init__(self) -> None:
        self.console = Console(width=None if sys.stdout.isatty() else 110)
        self._began = time.monotonic()
        self._count = 0

    @property
    def seconds(self) -> float:
        """Since the story began."""
        return time.monotonic() - self._began

    def step(self, text: str) -> None:
        """Print the next step's number and title."""
        self._count += 1
        self.console.rule(f"[bold]{self._count}. {text}", align="left")


def train_all(folder: Path, backbone: Path, data: DemoData, sizes: Sizes, commands: Commands) -> dict[str, Path]:
    """Train every task, and the movie task on few rows; the folder of each run, by task, and as `quick`."""
    quick = _first_rows(data.tasks[MOVIE].train, folder / "data" / "quick", sizes.quick_rows)
    trainings = {"quick": (MOVIE, quick, 1)}
    trainings |= {task: (task, data.tasks[task].train, epochs) for task, epochs in sizes.epochs.items()}
    runs = {}
    for name, (task, train, epochs) in trainings.items():
        runs[name] = folder / "runs" / name
        files = ("--train", train, "--validation", data.tasks[task].validation, "--output", runs[name])
        commands.run("train", task, "--backbone", backbone, *files, "--epochs", epochs)
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


def ask_three_ways(address: str, commands: Commands) -> None:
    """Ask the same question through the command line, the Python client and tritonclient."""
    from sidecast import Client

    commands.run("tasks", "--server", address)
    commands.run("predict", MOVIE, *SENTENCES, "--server", address)
    with Client(address) as client:
        tasks = [MOVIE, PRODUCT, TWEET]
        print(f'>>> Client("{address}").predict_tasks({tasks}, ["{SENTENCES[0]}"])   # one backbone pass')
        for task, outcome in client.predict_tasks(tasks, [SENTENCES[0]]).items():
            print(f"    {task}: {outcome if isinstance(outcome, Exception) else outcome[0]}")
    commands.run_python("demo.ask_triton", address, MOVIE, *SENTENCES)


def score_all(address: str, folder: Path, backbone: Path, data: DemoData, commands: Commands) -> list[TaskResult]:
    """Score each task on its test rows: as served, by the majority class, by the bare backbone."""
    results = []
    for task in (MOVIE, PRODUCT, TWEET):
        test = data.tasks[task].test
        served = commands.run_json("evaluate", task, "--data", test, "--server", address)
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
