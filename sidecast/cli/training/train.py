"""`sidecast train`: train a side network for each of one or more tasks, into a run folder each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar, say, scores_text
from sidecast.cli.percent import Share
from sidecast.cli.settings import GroupedCommand, setting_options
from sidecast.cli.training.bars import Bars
from sidecast.cli.training.verdict import (
    baseline_document,
    baseline_text,
    length_warnings,
    score_warnings,
    show_warnings,
)
from training.recipe import Recipe

if TYPE_CHECKING:
    from side_registry import TaskSpec
    from training.data import Labelled
    from training.job import Job

PLACEHOLDER = "{task}"
"""In a file's or folder's name: the task's."""

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
@click.argument("tasks", metavar="TASK...", nargs=-1, required=True)
@options.option("--backbone", required=True, metavar="B", help="A backbone: a Hugging Face folder, or a hub id.")
@click.option(
    "--train", "train_file", required=True, metavar="FILE", help="Training rows: .jsonl, .csv, .tsv, .parquet."
)
@click.option("--validation", "validation_file", metavar="FILE", help="Validation rows.")
@click.option(
    "--validation-share",
    type=Share(),
    metavar="S",
    help="Instead of --validation: the share of the training rows that validates, such as 10%, drawn by the seed.",
)
@click.option("--output", required=True, metavar="RUN", help="The run folder to make, or to go on with.")
@options.rename
@options.device
@options.dtype
@options.quantize
@options.as_json
@setting_options(Recipe, "Recipe", special=SPECIAL)
def train(
    tasks: Sequence[str],
    backbone: str,
    train_file: str,
    validation_file: str | None,
    validation_share: int | None,
    output: str,
    renames: dict[str, str],
    device: str,
    dtype: str,
    quantize: str,
    as_json: bool,
    **recipe: Any,
) -> None:
    """Train a side network for each TASK: a built-in task's name, or a task spec's TOML file.

    For several tasks, {task} in FILE and RUN stands for each task's name: --train data/{task}.csv --output runs/{task}.

    After an interruption, the same command continues after the last complete epoch; a finished run continues with more
    --epochs. `sidecast publish` takes the run folder.
    """
    from serving.client.shares import WHOLE
    from training.builtin_tasks import load_task
    from training.data import check_renames
    from training.job import Job

    specs = [load_task(task) for task in tasks]
    _check(specs, output, validation_file, validation_share)
    check_renames(specs, renames)
    settings = Recipe(**{name: value for name, value in recipe.items() if value is not None})
    for spec in specs:
        settings.side_config(spec)  # report mistakes in settings and data before the backbone loads
    share = None if validation_share is None else validation_share / WHOLE
    files = _Files(train_file, validation_file, share, renames)
    data = [files.read(spec, settings.seed) for spec in specs]
    loaded, tokenizer = options.load_backbone(backbone, device, dtype, quantize)
    documents: list[dict[str, Any]] = []
    for spec, rows in zip(specs, data, strict=True):
        job = Job(
            spec=spec,
            backbone=loaded,
            backbone_source=options.backbone_source(backbone),
            tokenizer=tokenizer,
            training=rows.training,
            validation=rows.validation,
            recipe=settings,
            reading=rows.reading,
        )
        documents.append(_run(job, _filled(output, spec), as_json=as_json))
    if as_json:
        say(True, documents[0] if len(documents) == 1 else {"runs": documents}, "")


@dataclass(frozen=True)
class _Rows:
    """One task's."""

    training: "Labelled"
    validation: "Labelled"
    reading: dict[str, Any]
    """As `Job.reading`."""


@dataclass(frozen=True)
class _Files:
    """Where rows come from, and how."""

    train: str
    validation: str | None
    share: float | None
    renames: dict[str, str]

    def read(self, spec: "TaskSpec", seed: int) -> _Rows:
        """The rows of one task. Raises DataError, or RecipeError for a file that cannot be split."""
        from training.data import known_names, read_labelled, split

        renames = {name: column for name, column in self.renames.items() if name in known_names(spec)}
        reading: dict[str, Any] = {"renames": renames} if renames else {}
        training = read_labelled(_filled(self.train, spec), spec, renames)
        if self.validation is not None:
            return _Rows(training, read_labelled(_filled(self.validation, spec), spec, renames), reading)
        assert self.share is not None
        training, validation = split(training, self.share, seed)
        return _Rows(training, validation, {**reading, "validation_share": self.share})


def _filled(path: str, spec: "TaskSpec") -> str:
    return path.replace(PLACEHOLDER, spec.name)


def _check(specs: Sequence["TaskSpec"], output: str, validation: str | None, share: int | None) -> None:
    if (validation is None) == (share is None):
        raise UserError(
            "give either --validation FILE, or --validation-share S to validate on a share of the training rows"
        )
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"task {twice[0]} is named twice; name it once")
    if len(specs) > 1 and PLACEHOLDER not in output:
        raise UserError(f"{len(specs)} tasks need {PLACEHOLDER} in --output, such as runs/{PLACEHOLDER}: a run each")


def _run(job: "Job", output: str, *, as_json: bool) -> dict[str, Any]:
    """Train one task; print the result, or with `as_json` nothing. Return the document."""
    from training.baseline import baseline_of
    from training.trainer import train as run_training

    spec = job.spec
    started = time.monotonic()
    truncated = _truncated(job)
    cut = length_warnings(spec, {f"{name} rows": share for name, share in truncated.items()})
    show_warnings(cut, as_json=as_json)
    with progress_bar(quiet=as_json) as bars:
        artifact = run_training(job, output, Bars(bars, spec.name))
    metrics = artifact.manifest.metrics
    epoch = artifact.manifest.provenance["epoch"]
    score = metrics[spec.metric]
    baseline = baseline_of(spec, job.validation.examples)
    unbeaten = score_warnings(spec, score, baseline)
    if not as_json:
        scores = scores_text({name: value for name, value in metrics.items() if name != "loss"})
        click.echo(f"{spec.name}: {scores} on the validation rows (epoch {epoch}){baseline_text(baseline)}")
        click.echo(f"{output} is ready: sidecast publish {output} --registry R")
    show_warnings(unbeaten, as_json=as_json)
    return {
        "task": spec.name,
        "run": output,
        "metric": spec.metric,
        "score": score,
        "metrics": metrics,
        **baseline_document(score, baseline),
        "truncated": truncated,
        "epoch": epoch,
        "seconds": round(time.monotonic() - started, 1),
        "warnings": cut + unbeaten,
    }


def _truncated(job: "Job") -> dict[str, float]:
    """The share of the training and of the validation rows that are longer than the spec allows."""
    from training.batches import count_truncated

    parts = {"training": job.training.examples, "validation": job.validation.examples}
    return {
        name: count_truncated(job.spec, job.tokenizer, examples) / len(examples) for name, examples in parts.items()
    }
