"""`sidecast train`: train a side network for a task, into a run folder."""

import time
from typing import Any

import click
from rich.progress import Progress

from sidecast.cli import options
from sidecast.cli.output import progress_bar, say, scores_text
from sidecast.cli.settings import GroupedCommand, setting_options
from training.recipe import Recipe

SPECIAL = {
    "learning_rate": {"flag": "--lr"},
    "encoder_layers": {
        "type": str,
        "callback": options.layers_or_all,
        "metavar": "I,J,...",
        "help": "Encoder blocks with a rung, numbered from 0, or all.  [default: every second; all for a text head]",
    },
    "decoder_layers": {"type": str, "callback": options.layers, "metavar": "I,J,..."},
    "teacher": {"metavar": "T"},
    "bias": {"help": "Leave out the biases of the down- and upsample projections."},
}
"""What does not follow from a recipe's fields: short names, and how values are written on the command line."""


@click.command(cls=GroupedCommand, short_help="Train a side network for a task on labelled rows.")
@click.argument("task")
@options.option("--backbone", required=True, metavar="B", help="A backbone: a Hugging Face folder, or a hub id.")
@click.option(
    "--train", "train_file", required=True, metavar="FILE", help="Training rows: .jsonl, .csv, .tsv, .parquet."
)
@click.option("--validation", "validation_file", required=True, metavar="FILE", help="Validation rows.")
@click.option("--output", required=True, metavar="RUN", help="The run folder to make, or to go on with.")
@options.device
@options.dtype
@options.quantize
@options.as_json
@setting_options(Recipe, "Recipe", special=SPECIAL)
def train(
    task: str,
    backbone: str,
    train_file: str,
    validation_file: str,
    output: str,
    device: str,
    dtype: str,
    quantize: str,
    as_json: bool,
    **recipe: Any,
) -> None:
    """Train a side network for TASK: a built-in task's name, or a task spec's TOML file.

    Interrupted and run again with the same settings, it goes on after the last whole epoch. The run folder is what
    `sidecast publish` takes.
    """
    from training.builtin_tasks import load_task
    from training.data import read_labelled
    from training.job import Job
    from training.trainer import train as run_training

    spec = load_task(task)
    settings = Recipe(**{name: value for name, value in recipe.items() if value is not None})
    settings.side_config(spec)  # report mistakes in settings and data before the backbone loads
    started = time.monotonic()
    training = read_labelled(train_file, spec)
    validation = read_labelled(validation_file, spec)
    loaded, tokenizer = options.load_backbone(backbone, device, dtype, quantize)
    job = Job(
        spec=spec,
        backbone=loaded,
        backbone_source=options.backbone_source(backbone),
        tokenizer=tokenizer,
        training=training,
        validation=validation,
        recipe=settings,
    )
    with progress_bar(quiet=as_json) as bars:
        artifact = run_training(job, output, _Bars(bars, spec.name))
    manifest = artifact.manifest
    document = {
        "task": spec.name,
        "run": output,
        "metric": spec.metric,
        "score": manifest.metrics[spec.metric],
        "metrics": manifest.metrics,
        "epoch": manifest.provenance["epoch"],
        "seconds": round(time.monotonic() - started, 1),
    }
    text = f"{spec.name}: {scores_text(manifest.metrics)} on the validation rows (epoch {manifest.provenance['epoch']})"
    say(as_json, document, f"{text}\n{output} is ready: sidecast publish {output} --registry R")


class _Bars:
    """The trainer's progress as bars: one for each preparation, one per epoch."""

    def __init__(self, bars: Progress, task: str) -> None:
        self.bars = bars
        self.task = task
        self.epochs = 0
        self.steps = 0
        self.ranks: Any = None
        self.reads: Any = None
        self.asks: Any = None
        self.current: Any = None

    def ranking(self, rows: int, total: int) -> None:
        if self.ranks is None:
            self.ranks = self.bars.add_task(f"{self.task}: Fisher information", total=total, note="")
        self.bars.update(self.ranks, completed=rows)

    def reading(self, rows: int, total: int) -> None:
        if self.reads is None:
            self.reads = self.bars.add_task(f"{self.task}: backbone pass", total=total, note="")
        self.bars.update(self.reads, completed=rows)

    def teaching(self, rows: int, total: int) -> None:
        if self.asks is None:
            self.asks = self.bars.add_task(f"{self.task}: teacher's answers", total=total, note="")
        self.bars.update(self.asks, completed=rows)

    def start(self, epochs: int, steps: int) -> None:
        self.epochs = epochs
        self.steps = steps

    def step(self, epoch: int, step: int, loss: float) -> None:
        if step == 0 or self.current is None:
            name = f"{self.task}: epoch {epoch + 1}/{self.epochs}"
            self.current = self.bars.add_task(name, total=self.steps, note="")
        self.bars.update(self.current, completed=step + 1, note=f"loss {loss:.4f}")

    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None:
        headline = dict([next(iter(scores.items()))])
        note = scores_text(headline) + (" (best)" if best else "")
        if self.current is not None:
            self.bars.update(self.current, note=note)
