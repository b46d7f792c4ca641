"""`sidecast train`: a side network for a task, into a run folder."""

import time
from typing import Any

import click
from rich.progress import Progress

from sidecast.cli import options
from sidecast.cli.output import progress_bar, say, scores_text


@click.command(short_help="Train a side network for a task on labelled rows.")
@click.argument("task")
@options.option("--backbone", required=True, metavar="B", help="A backbone: a Hugging Face folder, or a hub id.")
@click.option(
    "--train", "train_file", required=True, metavar="FILE", help="Training rows: .jsonl, .csv, .tsv, .parquet."
)
@click.option("--validation", "validation_file", required=True, metavar="FILE", help="Validation rows.")
@click.option("--output", required=True, metavar="RUN", help="The run folder to make, or to go on with.")
@click.option("--epochs", type=int, help="Times through the training rows.  [default: 3]")
@click.option("--lr", "learning_rate", type=float, help="Peak learning rate.  [default: 1e-3]")
@click.option("--seed", type=int, help="Of the start, the order of rows and dropout.  [default: 0]")
@click.option("--batch-rows", type=int, help="Rows in a step.  [default: 32]")
@click.option("--warmup", type=float, help="Share of steps over which the rate rises.  [default: 0.1]")
@click.option("--weight-decay", type=float, help="Of the optimizer, AdamW.  [default: 0]")
@click.option("--dropout", type=float, help="Inside the side network.  [default: 0.1]")
@click.option("--reduction", type=int, help="r: side widths are the backbone's divided by r.  [default: 8]")
@click.option(
    "--encoder-layers",
    callback=options.layers_or_all,
    metavar="I,J,...",
    help="Backbone blocks that the side network reads, from 0, or all.  [default: every second; all for a text head]",
)
@click.option(
    "--decoder-layers", callback=options.layers, metavar="I,J,...", help="As --encoder-layers, for a text head."
)
@click.option(
    "--head",
    type=click.Choice(["auto", "text", "linear", "mlp"]),
    help="What answers: the backbone's own words (text), or trained layers. auto: linear, but text for text tasks."
    "  [default: auto]",
)
@click.option(
    "--start",
    type=click.Choice(["fresh", "pretrained"]),
    help="pretrained: begin with the backbone's own answers (text head).  [default: fresh]",
)
@click.option(
    "--init",
    type=click.Choice(["random", "magnitude", "fisher"]),
    help="How rungs start: at random, or as the backbone's largest weights (magnitude) or those that matter most to the"
    " training rows (fisher).  [default: random]",
)
@click.option(
    "--init-order",
    type=click.Choice(["consistent", "reference"]),
    help="Of magnitude and fisher: one choice for the whole side network, or the LST authors' own, layer by layer."
    "  [default: consistent]",
)
@click.option("--init-samples", type=int, help="Training rows that fisher looks at.  [default: 128]")
@click.option("--distill", type=float, help="Share of the loss that a teacher sets, 0 to 1.  [default: 0]")
@click.option(
    "--teacher", metavar="T", help="backbone (its LM head), a run's folder or another T5.  [default: backbone]"
)
@click.option("--distill-temperature", type=float, help="Softens what the teacher says.  [default: 2]")
@click.option(
    "--optimizer", type=click.Choice(["adamw", "reference"]), help="reference: the LST authors'.  [default: adamw]"
)
@click.option("--clip", type=float, help="Longest gradient (2-norm) of a step; a longer one is cut.  [default: 1]")
@click.option(
    "--gate",
    type=click.Choice(["learnable", "fixed", "none", "one"]),
    help="How a rung mixes its tap in; none adds it, one ignores it.  [default: learnable]",
)
@click.option(
    "--gate-form",
    type=click.Choice(["scalar", "channel"]),
    help="Gates of a rung: one, or one a channel.  [default: scalar]",
)
@click.option("--gate-temperature", type=float, help="Smaller moves gates faster.  [default: 0.1]")
@click.option("--gate-start", type=float, help="Logit of a rung's gate; 0: half tap, half side state.  [default: 0]")
@click.option("--mix-after", is_flag=True, default=None, help="Mix taps in after the side blocks, not before.")
@click.option(
    "--merge-last", is_flag=True, default=None, help="Mix the backbone's last state into the answer (text head)."
)
@click.option("--no-bias", "bias", is_flag=True, flag_value=False, default=None, help="No biases in projections.")
@click.option("--cache-gb", type=float, help="Most memory for kept activations, in 10^9 bytes.  [default: 4]")
@options.device
@options.dtype
@options.quantize
@options.as_json
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
    from training.recipe import Recipe
    from training.trainer import train as run_training

    spec = load_task(task)
    settings = Recipe(**{name: value for name, value in recipe.items() if value is not None})
    settings.side_config(spec)  # mistakes in settings and data are told before the backbone loads
    started = time.monotonic()
    training, validation = read_labelled(train_file, spec), read_labelled(validation_file, spec)
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
    """The trainer's progress as bars: one for the backbone's pass, one an epoch."""

    def __init__(self, bars: Progress, task: str) -> None:
        self.bars, self.task, self.epochs, self.steps = bars, task, 0, 0
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
        self.epochs, self.steps = epochs, steps

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
