"""Trains the guard's classifiers, publishes them, and gives the registry the group `guard`.

    python -m examples.guard.train --output guard-run
    python -m examples.guard.train --output guard-run --data FOLDER    # GLUE's cola and sst2 too

Finished trainings in the output folder are used again.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

import ladder
from demo.backbone import get_backbone
from demo.downloads import cache_folder
from demo.folders import DemoError
from examples.guard.tasks import TaskRows, read_tasks, write_rows
from ladder.errors import LadderError
from side_registry import RegistryError
from sidecast import Registry
from training import Job, load_run, read_labelled, train
from training.baseline import baseline_of
from training.errors import TrainingError
from training.recipes.named_recipes import named_recipe

GROUP = "guard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a classifier reached on its test rows."""

    task: str
    train_rows: int
    test_rows: int
    metric: str
    score: float
    baseline: float
    """Score of the best answer that is the same for all rows."""
    seconds: float
    """Of the training."""


class Trainer:
    """Trains tasks on one loaded backbone and publishes them."""

    def __init__(self, backbone: str, folder: Path, epochs: int) -> None:
        self._source, self._folder, self._epochs = backbone, folder, epochs
        self._backbone = ladder.load_backbone(backbone)
        self._tokenizer = ladder.load_tokenizer(backbone)
        self._registry = Registry.open(str(folder / "registry"), create=True)

    def train(self, task: TaskRows) -> Score:
        """Train, publish as the production version, and score on the test rows."""
        spec, started = task.spec, time.monotonic()
        files = write_rows(self._folder / "data" / spec.name, task.rows)
        job = Job(
            spec=spec,
            backbone=self._backbone,
            backbone_source=self._source,
            tokenizer=self._tokenizer,
            training=read_labelled(files["train"], spec),
            validation=read_labelled(files["validation"], spec),
            recipe=named_recipe("default", [spec], {"epochs": self._epochs}),
        )
        folder = train(job, self._folder / "runs" / spec.name).folder
        seconds = time.monotonic() - started
        self._registry.publish(folder, alias="production")
        test = read_labelled(files["test"], spec).examples
        baseline = baseline_of(spec, test)
        assert baseline is not None
        return Score(
            task=spec.name,
            train_rows=len(job.training.examples),
            test_rows=len(test),
            metric=spec.metric,
            score=load_run(folder, self._backbone, self._tokenizer).score(test)[spec.metric],
            baseline=baseline.score,
            seconds=seconds,
        )

    def set_group(self, tasks: Sequence[str]) -> None:
        """Give the group these tasks."""
        self._registry.set_group(GROUP, tasks)


def table(scores: Sequence[Score]) -> str:
    """Return the scores as a Markdown table."""
    lines = [
        "| task | training rows | test rows | metric | score | same answer to all | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for score in scores:
        sizes = f"{score.train_rows:,} | {score.test_rows:,}"
        measured = f"{score.metric} | {score.score:.3f} | {score.baseline:.3f}"
        lines.append(f"| {score.task} | {sizes} | {measured} | {score.seconds:.0f} |")
    return "\n".join(lines)


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of data, runs and registry.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder with GLUE's cola and sst2 as JSONL files.")
@click.option("--backbone", metavar="B", help="A Hugging Face folder, or a hub id.  [default: the demo's]")
@click.option("--rows", type=click.IntRange(10), default=2000, show_default=True, help="Most training rows of a task.")
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="Passes over the training rows.")
def main(output: Path, data: Path | None, backbone: str | None, rows: int, epochs: int) -> None:
    """Train the guard's classifiers, publish them, and set the group `guard`."""
    try:
        source = backbone or str(get_backbone(cache_folder()))
        trainer = Trainer(source, output, epochs)
        scores = []
        for task in read_tasks(data, rows):
            scores.append(trainer.train(task))
            click.echo(
                f"{task.spec.name}: {scores[-1].metric} {scores[-1].score:.3f} in {scores[-1].seconds:.0f} s", err=True
            )
        trainer.set_group([score.task for score in scores])
        click.echo(table(scores))
        click.echo(f"\nsidecast serve --backbone {source} --registry {output / 'registry'}")
    except (DemoError, LadderError, RegistryError, TrainingError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
