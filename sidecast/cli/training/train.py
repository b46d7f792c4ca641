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
from sidecast.cli.training.image_options import ImageArguments, image_options
from sidecast.cli.training.verdict import (
    baseline_document,
    baseline_text,
    cache_warnings,
    length_warnings,
    score_warnings,
    show_warnings,
)
from training.recipe import Recipe

if TYPE_CHECKING:
    from side_registry import TaskSpec
    from table_files import ImageSource
    from training.data import Labelled
    from training.job import Job
    from vision import FeatureFile

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
@image_options
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
    images: str | None,
    features: str | None,
    vision: str | None,
    vision_layer: int | None,
    vision_size: int | None,
    cache_dir: str | None,
    renames: dict[str, str],
    device: str,
    dtype: str,
    quantize: str,
    as_json: bool,
    **recipe: Any,
) -> None:
    """Train a side network for each TASK: a built-in task's name, or a task spec's TOML file.

    For several tasks, {task} in FILE, I and RUN stands for each task's name: --train data/{task}.csv --output
    runs/{task}.

    A task whose rows have images needs --images and --vision, or --features.

    After an interruption, the same command continues after the last complete epoch; a finished run continues with more
    --epochs. `sidecast publish` takes the run folder.
    """
    from serving.client.shares import WHOLE
    from training.builtin_tasks import load_task
    from training.data import check_renames
    from training.images import ImageInputs
    from training.job import Job

    specs = [load_task(task) for task in tasks]
    _check(specs, output, validation_file, validation_share)
    check_renames(specs, renames)
    settings = Recipe(**{name: value for name, value in recipe.items() if value is not None})
    for spec in specs:
        settings.side_config(spec, 1 if spec.images else None)  # report mistakes in settings before the backbone loads
    share = None if validation_share is None else validation_share / WHOLE
    arguments = ImageArguments(images, features, vision, vision_layer, vision_size, cache_dir)
    encoder_source = arguments.encoder_source
    arguments.check_used(specs)
    for spec in specs:
        arguments.check(spec, has_encoder=encoder_source is not None)
    files = _Files(train_file, validation_file, share, renames, arguments)
    data = [files.read(spec, settings.seed) for spec in specs]
    loaded, tokenizer = options.load_backbone(backbone, device, dtype, quantize)
    encoder = None if encoder_source is None else encoder_source.load(loaded.device)
    documents: list[dict[str, Any]] = []
    for spec, rows in zip(specs, data, strict=True):
        inputs = None
        if rows.images is not None:
            inputs = ImageInputs(
                source=rows.images,
                encoder=encoder,
                encoder_source=encoder_source,
                cache_dir=arguments.cache_folder,
            )
        job = Job(
            spec=spec,
            backbone=loaded,
            backbone_source=options.backbone_source(backbone),
            tokenizer=tokenizer,
            training=rows.training,
            validation=rows.validation,
            recipe=settings,
            reading=rows.reading,
            images=inputs,
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
    images: "ImageSource | FeatureFile | None" = None
    """Of a task with images."""


@dataclass(frozen=True)
class _Files:
    """Where rows come from, and how."""

    train: str
    validation: str | None
    share: float | None
    renames: dict[str, str]
    arguments: ImageArguments

    def read(self, spec: "TaskSpec", seed: int) -> _Rows:
        """The rows of one task. Raises DataError, or RecipeError for a file that cannot be split."""
        from training.data import known_names, split

        renames = {name: column for name, column in self.renames.items() if name in known_names(spec)}
        reading: dict[str, Any] = {"renames": renames} if renames else {}
        images = self.arguments.open_source(lambda name: _filled(name, spec)) if spec.images else None
        training = self._labelled(self.train, spec, renames, images)
        if self.validation is not None:
            validation = self._labelled(self.validation, spec, renames, images)
            return _Rows(training, validation, reading, images)
        assert self.share is not None
        training, validation = split(training, self.share, seed, by=spec.images)
        return _Rows(training, validation, {**reading, "validation_share": self.share}, images)

    def _labelled(
        self, file: str, spec: "TaskSpec", renames: dict[str, str], images: "ImageSource | FeatureFile | None"
    ) -> "Labelled":
        """The rows of a file, whose images are all there."""
        from training.data import read_labelled
        from training.images import check_images

        path = _filled(file, spec)
        labelled = read_labelled(path, spec, renames)
        if images is not None:
            check_images(spec, path, labelled.examples, images)
        return labelled


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
    if job.features is not None:
        unbeaten += cache_warnings(spec, job.features.disk_fault)
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
