"""What are several seeds worth? Compares one run, the best of them, their mean answers, their mean weights, and a run
that all of them taught.

    python -m benchmarks.training.bench_seeds --backbone B --data DIR

The rows are drawn as in `benchmarks.training.bench_defaults`, and the code of `sidecast train` trains the runs. "one"
is the mean of the runs' scores; "best" is the run that `sidecast train --seed 0,1,2` links as RUN/best. "taught" has
the sweep's folder as `--teacher`; it costs as much as one run to serve, where mean answers cost as much as all runs.
Differences are taken on the same task and seeds. Nothing is timed.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.harness.machine import look
from benchmarks.harness.samples import BenchmarkError, plain_errors
from benchmarks.training.bench_defaults import (
    Plan,
    job_of,
    read_names,
    read_settings,
    show,
    split,
    summary,
)
from ladder import Answer, Backbone, ClassAnswer, Tokenizer, ValueAnswer, load_backbone, load_tokenizer
from sidecast.cli.output import progress_bar
from training import load_task, read_labelled, sweep_jobs, train, train_many
from training.evaluation import score_answers
from training.loaded_run import LoadedRun, load_run

ONE = "one"
SETTINGS = (ONE, "best", "mean answers", "mean weights", "taught")
TAUGHT_SHARE = 0.5
"""The teachers' share of the loss, `--distill`."""


def run(
    plan: Plan, runs: int, backbone: Backbone, tokenizer: Tokenizer, data: Path, done: Callable[[dict[str, Any]], None]
) -> Iterator[dict[str, Any]]:
    """Score each setting of each group of seeds; call `done` with each score, and yield it.

    Args:
        plan: `seeds` are numbers of groups; group g has the seeds from g * runs on.
        runs: in a group.

    Raises:
        BenchmarkError: answers of a task have no mean.
    """
    for task in plan.tasks:
        if (kind := load_task(task).kind) not in ("classification", "regression"):
            raise BenchmarkError(f"{task} is {kind}: give tasks of classification or regression, for means of answers")
    for task in plan.tasks:
        with tempfile.TemporaryDirectory(prefix="sidecast-seeds-") as folder:
            split(data / task, Path(folder), plan)
            for group in plan.seeds:
                seeds = range(group * runs, (group + 1) * runs)
                for name, score in scores_of(task, seeds, plan.base, backbone, tokenizer, Path(folder)).items():
                    line = {"task": task, "seed": group, "setting": name, "score": score}
                    done(line)
                    yield line


def scores_of(
    task: str, seeds: Sequence[int], base: Mapping[str, Any], backbone: Backbone, tokenizer: Tokenizer, folder: Path
) -> dict[str, float]:
    """Train a group of runs and the one that they teach; return the score of each setting, times 100."""
    job = job_of(task, {**base, "seed": seeds[0]}, backbone, tokenizer, folder)
    examples = read_labelled(folder / "scored.jsonl", job.spec).examples
    with tempfile.TemporaryDirectory(prefix="sidecast-seeds-") as made:
        sweep = train_many(sweep_jobs(job, seed=tuple(seeds)), Path(made) / "sweep")
        loaded = {one.name: load_run(sweep.folder / one.name, backbone, tokenizer) for one in sweep.runs}
        answers = {name: one.answers(examples) for name, one in loaded.items()}
        taught = replace(job.recipe, teacher=str(sweep.folder), distill=TAUGHT_SHARE)
        train(replace(job, recipe=taught), Path(made) / "taught")
        student = load_run(Path(made) / "taught", backbone, tokenizer).answers(examples)

    def score(given: Sequence[Answer]) -> float:
        return 100 * score_answers(job.spec, given, examples)[job.spec.metric]

    return {
        ONE: statistics.fmean(map(score, answers.values())),
        "best": score(answers[sweep.best.name]),
        "mean answers": score([mean_answer(job.spec.labels, each) for each in zip(*answers.values(), strict=True)]),
        "mean weights": score(mean_weights(list(loaded.values())).answers(examples)),
        "taught": score(student),
    }


def mean_answer(labels: Sequence[str], answers: Sequence[Answer]) -> Answer:
    """Return the mean of several side networks' answers to one row: of probabilities, or of values."""
    values = [one.value for one in answers if isinstance(one, ValueAnswer)]
    if values:
        return ValueAnswer(value=statistics.fmean(values))
    scores = torch.tensor([one.scores for one in answers if isinstance(one, ClassAnswer)]).mean(0)
    best = int(scores.argmax())
    return ClassAnswer(label=labels[best], score=float(scores[best]), scores=tuple(scores.tolist()))


def mean_weights(runs: Sequence[LoadedRun]) -> LoadedRun:
    """Return the first run with the mean of all runs' weights, in place of its own."""
    states = [one.side.state_dict() for one in runs]
    runs[0].side.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    return runs[0]


@click.command()
@click.option("--backbone", required=True, metavar="B", help="A Hugging Face folder, or a hub id.")
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True), help="Holds <task>/train.jsonl.")
@click.option("--tasks", default="rte,mrpc,stsb,cola", show_default=True, callback=read_names)
@click.option("--runs", default=3, show_default=True, type=click.IntRange(2), help="Seeds in a group.")
@click.option("--groups", default=3, show_default=True, type=click.IntRange(1), help="Groups of seeds.")
@click.option("--rows", default=4000, show_default=True, help="Training rows of a task.")
@click.option("--selecting", default=300, show_default=True, help="Rows that select the best epoch and the best run.")
@click.option("--scored", default=600, show_default=True, help="Rows to score on; 0: DIR/<task>/validation.jsonl.")
@click.option(
    "--set", "base", multiple=True, callback=read_settings, metavar="NAME=JSON", help="A recipe field of all."
)
@click.option("--threads", default=2, show_default=True)
def main(
    backbone: str,
    data: Path,
    tasks: tuple[str, ...],
    runs: int,
    groups: int,
    rows: int,
    selecting: int,
    scored: int,
    base: dict[str, Any],
    threads: int,
) -> None:
    """Compare what several runs that differ in their seed are worth."""
    torch.set_num_threads(threads)
    plan = Plan(
        tasks=tasks,
        settings={name: {} for name in SETTINGS},
        seeds=tuple(range(groups)),
        rows=rows,
        selecting=selecting,
        scored=scored,
        base=base,
    )
    with plain_errors(), progress_bar() as bars:
        bar = bars.add_task("training", total=len(tasks) * groups * len(SETTINGS), note="")

        def done(line: dict[str, Any]) -> None:
            bars.update(bar, advance=1, note=f"{line['task']} {line['setting']} {line['score']:.1f}")

        loaded = load_backbone(backbone)
        lines = list(run(plan, runs, loaded, load_tokenizer(backbone), data, done))
    table = summary(lines, SETTINGS, tasks)
    show(table)
    document = {
        "name": "seeds",
        "machine": look("cpu", "float32").to_dict(),
        "backbone": loaded.name,
        "rows": rows,
        "selecting": selecting,
        "scored": scored,
        "runs": runs,
        "groups": groups,
        "base": {name: list(value) if isinstance(value, tuple) else value for name, value in base.items()},
        "settings": table,
        "scores": lines,
    }
    click.echo(json.dumps(document))


if __name__ == "__main__":
    main()
