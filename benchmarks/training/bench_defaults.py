"""Which settings train the best side networks? Compares the settings of a question on the same rows and seeds.

    python -m benchmarks.training.bench_defaults --backbone B --data DIR --question gate --question init

`DIR/<task>/train.jsonl` has the labelled rows of built-in tasks. The rows of a task are shuffled with a fixed seed; the
first ones are for training, the next ones select the best epoch, and the next ones are for scoring. The code of
`sidecast train` trains every setting for every task and seed. The result is the difference to the base setting on the
same task and seed; the base is trained once for all questions. The backbone runs once for all settings of a task: its
activations do not change. Nothing is timed.
"""

import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness.machine import look
from benchmarks.harness.samples import WIDTH, BenchmarkError, plain_errors
from ladder import Backbone, Taps, Tokenizer, load_backbone, load_tokenizer
from sidecast.cli.output import progress_bar
from training.builtin_tasks import load_task
from training.data import read_labelled
from training.job import Job
from training.loaded_run import load_run
from training.recipes.recipe import Recipe
from training.trainer import train

Setting = Mapping[str, Any]
"""Fields of a Recipe; `template`, if there, is the task spec's."""

BASE = "base"
QUESTIONS: Mapping[str, Mapping[str, Setting]] = {
    "rate": {"3e-4": {"learning_rate": 3e-4}, "3e-3": {"learning_rate": 3e-3}},
    "reduction": {"r 4": {"reduction": 4}, "r 16": {"reduction": 16}},
    "rungs": {"all rungs": {"encoder_layers": "all"}, "rungs 4,5,6,7": {"encoder_layers": (4, 5, 6, 7)}},
    "gate": {
        "a gate a channel": {"gate_form": "channel"},
        "gate temperature 1": {"gate_temperature": 1.0},
        "no gates": {"gate": "none"},
    },
    "init": {
        "magnitude, consistent": {"init": "magnitude", "init_order": "consistent"},
        "fisher, consistent": {"init": "fisher", "init_order": "consistent"},
        "fisher, reference": {"init": "fisher", "init_order": "reference"},
    },
    "attention": {"attention head": {"head": "attention"}},
    "head": {"mlp head": {"head": "mlp"}, "text head": {"head": "text"}},
    "taps": {"raw taps": {"tap_norm": "none"}},
    "dropout": {"dropout 0": {"dropout": 0.0}},
    "template": {
        "task's name in front": {"template": "{task} {fields}"},
        "fields without names": {"template": "{bare}"},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to train."""

    tasks: tuple[str, ...]
    settings: Mapping[str, Setting]
    seeds: tuple[int, ...]
    rows: int
    """Training rows; fewer where a file has fewer."""
    selecting: int
    """Rows that select the best epoch."""
    scored: int
    """Rows to score on; 0: all of the task's validation.jsonl."""
    base: Setting
    """Recipe fields of all settings, such as epochs."""


class Remembering:
    """Replaces a backbone's `encode`: it keeps the activations of every batch until `forget`."""

    def __init__(self, backbone: Backbone) -> None:
        self._encode: Callable[..., Taps] = backbone.encode
        self._seen: dict[tuple[bytes, tuple[int, ...]], Taps] = {}
        backbone.encode = self.encode

    def encode(self, ids: Tensor, mask: Tensor, depth: int | None = None) -> Taps:
        """As `Backbone.encode`; remembers the taps of each input."""
        key = (ids.cpu().numpy().tobytes(), tuple(ids.shape))
        if key not in self._seen:
            self._seen[key] = self._encode(ids, mask, None)
        whole = self._seen[key]
        if depth is None or depth >= len(whole.blocks):
            return whole
        return Taps(embeddings=whole.embeddings, blocks=whole.blocks[:depth], mask=whole.mask)

    def forget(self) -> None:
        """Drop all remembered taps."""
        self._seen.clear()


def run(
    plan: Plan, backbone: Backbone, tokenizer: Tokenizer, data: Path, done: Callable[[dict[str, Any]], None]
) -> Iterator[dict[str, Any]]:
    """Train and score every setting; call `done` with each score, and yield it."""
    memory = Remembering(backbone)
    for task in plan.tasks:
        with tempfile.TemporaryDirectory(prefix="sidecast-defaults-") as folder:
            split(data / task, Path(folder), plan)
            for name, setting in plan.settings.items():  # the base first
                for seed in plan.seeds:
                    score = train_one(task, {**plan.base, **setting, "seed": seed}, backbone, tokenizer, Path(folder))
                    line = {"task": task, "seed": seed, "setting": name, "score": score}
                    done(line)
                    yield line
                if "template" in setting:
                    memory.forget()  # the next template makes other inputs
        memory.forget()


def split(source: Path, folder: Path, plan: Plan) -> None:
    """Write train.jsonl, selecting.jsonl and scored.jsonl, made of the files of a task in `source`."""
    lines = _lines(source / "train.jsonl")
    random.Random("rows").shuffle(lines)
    trained = min(plan.rows, len(lines) - plan.selecting - plan.scored)
    parts = {
        "train": lines[:trained],
        "selecting": lines[trained : trained + plan.selecting],
        "scored": lines[trained + plan.selecting :][: plan.scored] or _lines(source / "validation.jsonl"),
    }
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BenchmarkError(f"cannot read {file.name} of a task: {error.strerror or error}") from None


def job_of(task: str, setting: Setting, backbone: Backbone, tokenizer: Tokenizer, folder: Path) -> Job:
    """Return the job that trains a setting on the rows that `split` wrote into `folder`."""
    spec = load_task(task)
    recipe = dict(setting)
    template = recipe.pop("template", None)
    if template is not None:
        bare = " ".join(f"{{{name}}}" for name in spec.fields)
        text = template.replace("{task}", task).replace("{fields}", spec.template).replace("{bare}", bare)
        spec = spec.model_copy(update={"template": text})
    return Job(
        spec=spec,
        backbone=backbone,
        backbone_source=backbone.name,
        tokenizer=tokenizer,
        training=read_labelled(folder / "train.jsonl", spec),
        validation=read_labelled(folder / "selecting.jsonl", spec),
        recipe=Recipe(**recipe),
    )


def train_one(task: str, setting: Setting, backbone: Backbone, tokenizer: Tokenizer, folder: Path) -> float:
    """Train one setting; return its headline score, times 100."""
    job = job_of(task, setting, backbone, tokenizer, folder)
    with tempfile.TemporaryDirectory(prefix="sidecast-defaults-") as output:
        run_folder = Path(output) / "run"
        train(job, run_folder)
        run = load_run(run_folder, backbone, tokenizer)
        return 100 * run.score(read_labelled(folder / "scored.jsonl", job.spec).examples)[job.spec.metric]


def summary(lines: Sequence[Mapping[str, Any]], settings: Sequence[str], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Return, for each setting, its mean by task and over all tasks, and the mean difference to the first."""
    score = {(line["task"], line["seed"], line["setting"]): line["score"] for line in lines}
    rows = []
    for name in settings:
        means = {t: statistics.fmean(s for (task, _, n), s in score.items() if (task, n) == (t, name)) for t in tasks}
        differences = [s - score[task, seed, settings[0]] for (task, seed, n), s in score.items() if n == name]
        spread = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
        rows.append(
            {
                "setting": name,
                "tasks": {task: round(mean, 2) for task, mean in means.items()},
                "mean": round(statistics.fmean(means.values()), 2),
                "difference": round(statistics.fmean(differences), 2),
                "standard_error": round(spread, 2),
            }
        )
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of settings and their scores."""
    table = Table("", box=None, pad_edge=False)
    tasks = list(rows[0]["tasks"])
    for heading in (*tasks, "mean", "difference", "error"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (*row["tasks"].values(), row["mean"], row["difference"], row["standard_error"])
        table.add_row(row["setting"], *(f"{number:.2f}" for number in numbers))
    (Console() if Console().is_terminal else Console(width=WIDTH)).print(table)


def read_settings(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> dict[str, Any]:
    """Callback of click: NAME=JSON, such as learning_rate=3e-3, any number of times."""
    try:
        pairs = [item.split("=", 1) for item in value]
        read = {name: json.loads(text) for name, text in pairs}
    except ValueError:
        raise click.BadParameter("give NAME=JSON, such as learning_rate=3e-3") from None
    return {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}


def read_names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Callback of click: names, separated by commas."""
    return tuple(value.split(","))


def read_numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Callback of click: numbers, separated by commas."""
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"give numbers such as 0,1,2; got {value!r}") from None


@click.command()
@click.option("--backbone", required=True, metavar="B", help="A Hugging Face folder, or a hub id.")
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True), help="Holds <task>/train.jsonl.")
@click.option("--question", "questions", required=True, multiple=True, type=click.Choice(list(QUESTIONS)))
@click.option("--tasks", default="sst2,mrpc,stsb,qnli", show_default=True, callback=read_names)
@click.option("--seeds", default="0,1", show_default=True, callback=read_numbers)
@click.option("--rows", default=2000, show_default=True, help="Training rows of a task.")
@click.option("--selecting", default=500, show_default=True, help="Rows that select the best epoch.")
@click.option("--scored", default=1000, show_default=True, help="Rows to score on; 0: DIR/<task>/validation.jsonl.")
@click.option(
    "--set", "base", multiple=True, callback=read_settings, metavar="NAME=JSON", help="A recipe field of all."
)
@click.option("--threads", default=2, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Append each score there as a JSON line.")
def main(
    backbone: str,
    data: Path,
    questions: Sequence[str],
    tasks: tuple[str, ...],
    seeds: tuple[int, ...],
    rows: int,
    selecting: int,
    scored: int,
    base: dict[str, Any],
    threads: int,
    output: Path | None,
) -> None:
    """Compare training settings that differ in one field."""
    torch.set_num_threads(threads)
    settings = {BASE: {}} | {name: setting for question in questions for name, setting in QUESTIONS[question].items()}
    plan = Plan(tasks=tasks, settings=settings, seeds=seeds, rows=rows, selecting=selecting, scored=scored, base=base)
    with plain_errors(), progress_bar() as bars:
        bar = bars.add_task("training", total=len(tasks) * len(seeds) * len(settings), note="")

        def done(line: dict[str, Any]) -> None:
            bars.update(bar, advance=1, note=f"{line['task']} {line['setting']} {line['score']:.1f}")
            if output is not None:
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

        loaded = load_backbone(backbone)
        lines = list(run(plan, loaded, load_tokenizer(backbone), data, done))
    table = summary(lines, list(settings), tasks)
    show(table)
    document = {
        "name": "defaults",
        "questions": list(questions),
        "machine": look("cpu", "float32").to_dict(),
        "backbone": loaded.name,
        "rows": rows,
        "selecting": selecting,
        "scored": scored,
        "seeds": list(seeds),
        "base": {name: list(value) if isinstance(value, tuple) else value for name, value in base.items()},
        "settings": table,
    }
    click.echo(json.dumps(document))


if __name__ == "__main__":
    main()
