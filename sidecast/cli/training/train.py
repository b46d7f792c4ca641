"""`sidecast train`: train a side network for each of one or more tasks, or one for all, into run folders."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar, say, scores_text
from sidecast.cli.percent import Share
from sidecast.cli.settings import GroupedOption, setting_options
from sidecast.cli.training.curves import Curves, FollowedBars, Tracking
from sidecast.cli.training.image_options import ImageArguments, image_options_by_task
from sidecast.cli.training.on_ray import RememberingCommand, train_on_ray, words_of
from sidecast.cli.training.sweep import Several, combinations, run_sweep
from sidecast.cli.training.task_files import PLACEHOLDER, PerTask, filled
from sidecast.cli.training.verdict import (
    baseline_document,
    baseline_text,
    cache_warnings,
    class_warnings,
    length_warnings,
    score_warnings,
    show_warnings,
)
from training.recipes.named_recipes import RecipeName, named_recipe
from training.recipes.recipe import SWEPT, Recipe

if TYPE_CHECKING:
    from ladder.config import BackboneConfig
    from side_registry import TaskSpec
    from side_registry.manifest import Artifact
    from table_files import ImageSource
    from training.data import Labelled
    from training.job import Job
    from vision import FeatureFile

SPECIAL: dict[str, dict[str, Any]] = {
    **{name: {"type": Several(name)} for name in SWEPT},
    "learning_rate": {"flag": "--lr", "type": Several("learning_rate")},
    "encoder_layers": {
        "type": str,
        "callback": options.layers_or_all,
        "metavar": "I,J,...",
        "help": "Encoder blocks with a rung, numbered from 0, or all.  [default: every second; all for a text head]",
    },
    "decoder_layers": {"type": str, "callback": options.layers, "metavar": "I,J,..."},
    "start": {"metavar": "fresh|pretrained|RUN"},
    "teacher": {"metavar": "T"},
    "bias": {"help": "Leave out the biases of the down- and upsample projections."},
}
"""What does not follow from a recipe's fields: short names, and how values are written on the command line."""


@click.command(cls=RememberingCommand, short_help="Train a side network for a task on labelled rows.")
@click.argument("tasks", metavar="TASK...", nargs=-1, required=True)
@options.option("--backbone", required=True, metavar="B", help="A backbone: a Hugging Face folder, or a hub id.")
@click.option(
    "--train",
    "train_files",
    required=True,
    multiple=True,
    metavar="[TASK=]FILE",
    help="Training rows: .jsonl, .csv, .tsv, .parquet.",
)
@click.option(
    "--validation", "validation_files", multiple=True, metavar="[TASK=]FILE", help="Validation rows, likewise."
)
@click.option(
    "--validation-share",
    type=Share(),
    metavar="S",
    help="Instead of --validation: the share of the training rows that validates, such as 10%, drawn by the seed.",
)
@click.option("--output", required=True, metavar="RUN", help="The run folder to make, or to go on with.")
@click.option(
    "--shared", is_flag=True, help="Train one side network for all tasks; the run folder of each is RUN/TASK."
)
@click.option(
    "--tensorboard",
    metavar="FOLDER",
    help="Write TensorBoard's event files there after each epoch, into FOLDER/TASK.",
)
@click.option(
    "--wandb", metavar="PROJECT", help="Send each epoch to this project of Weights & Biases, a run for each run folder."
)
@click.option(
    "--ray-workers",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Train on N workers of a Ray cluster, with Ray Train, one on each GPU.",
)
@click.option(
    "--ray-address", default="", metavar="A", help="The cluster's.  [default: one of its own, on this machine]"
)
@image_options_by_task
@options.rename
@options.device
@options.dtype
@options.quantize
@options.as_json
@click.option(
    "--recipe",
    "recipe_name",
    default="default",
    show_default=True,
    type=click.Choice(get_args(RecipeName)),
    help="Where settings that are not given come from: Sidecast's defaults, or the LST paper.",
    cls=GroupedOption,
    group="Recipe",
)
@setting_options(Recipe, "Recipe", special=SPECIAL)
def train(
    tasks: Sequence[str],
    backbone: str,
    train_files: Sequence[str],
    validation_files: Sequence[str],
    validation_share: int | None,
    output: str,
    shared: bool,
    tensorboard: str | None,
    wandb: str | None,
    ray_workers: int,
    ray_address: str,
    images: Sequence[str],
    features: Sequence[str],
    vision: str | None,
    vision_layer: int | None,
    vision_size: int | None,
    cache_dir: str | None,
    renames: dict[str, str],
    device: str,
    dtype: str,
    quantize: str,
    as_json: bool,
    recipe_name: str,
    **recipe: Any,
) -> None:
    """Train a side network for each TASK: a built-in task's name, or a task spec's TOML file.

    For several tasks, {task} in FILE, I and RUN stands for each task's name: --train data/{task}.csv --output
    runs/{task}. Or name each task's file: --train sst2=a.csv --train cola=b.csv.

    With --shared, one side network learns all tasks, which are then of the kinds classification and text.

    A task whose rows have images needs --images and --vision, or --features.

    --lr, --seed, --reduction, --dropout and --head take several values, such as --lr 3e-4,1e-3 --seed 0,1,2: then a run
    for each combination is trained, all at once, into RUN/lr-3e-4-seed-0 and so on. RUN/best is the one with the best
    score on the validation rows.

    RUN/curves.png shows the loss and the metric over the epochs, where matplotlib is installed (extra plot).

    On several GPUs: accelerate launch -m sidecast train TASK ..., or torchrun -m; each process trains on its share of
    every step's rows (extra distributed). --ray-workers does it on a Ray cluster, whose machines must all have the
    files and RUN under the same paths.

    After an interruption, the same command continues after the last complete epoch; a finished run continues with more
    --epochs. `sidecast publish` takes the run folder.
    """
    from serving.client.shares import WHOLE
    from training.builtin_tasks import load_task
    from training.data import check_renames
    from training.images import ImageInputs
    from training.job import Job
    from training.processes import join_processes

    specs = [load_task(task) for task in tasks]
    tracking = Tracking(tensorboard, wandb)
    tracking.check()
    _check(specs, output, validation_files, validation_share, shared=shared)
    check_renames(specs, renames)
    given_settings = {name: value for name, value in recipe.items() if value is not None}
    choices = [_Recipes(recipe_name, settings, shared) for settings in combinations(given_settings)]
    if shared and len(choices) > 1:
        raise UserError("--shared trains one run: give each setting one value")
    for chosen in choices:
        for spec, settings in zip(specs, chosen.of(specs), strict=True):
            settings.side_config(spec, 1 if spec.images else None)  # report mistakes before the backbone loads
    if ray_workers:
        train_on_ray(words_of(click.get_current_context()), ray_workers, ray_address, device)
    share = None if validation_share is None else validation_share / WHOLE
    names = [spec.name for spec in specs]
    pictures = PerTask.parse("--images", images, names)
    extracted = PerTask.parse("--features", features, names)
    arguments = [
        ImageArguments(pictures.of(name), extracted.of(name), vision, vision_layer, vision_size, cache_dir)
        for name in names
    ]
    encoder_source = arguments[0].encoder_source
    for spec, given in zip(specs, arguments, strict=True):
        by_name = spec.name in pictures.named or spec.name in extracted.named
        given.check_used([spec] if by_name else specs)
        given.check(spec, has_encoder=encoder_source is not None)
    files = _Files(
        PerTask.parse("--train", train_files, names),
        PerTask.parse("--validation", validation_files, names),
        share,
        renames,
    )
    seed = choices[0].given.get("seed", 0)
    data = [files.read(spec, seed, given) for spec, given in zip(specs, arguments, strict=True)]
    processes, device = join_processes(device)
    quiet = as_json or not processes.is_first
    loaded, tokenizer = options.load_backbone(backbone, device, dtype, quantize)
    encoder = None if encoder_source is None else encoder_source.load(loaded.device)
    counts = [len(rows.training.examples) for rows in data]
    jobs: list[list[Job]] = [[] for _ in specs]
    for chosen in choices:
        settings_of = chosen.of(specs, counts, loaded.config)
        for runs, spec, rows, settings, given in zip(jobs, specs, data, settings_of, arguments, strict=True):
            inputs = None
            if rows.images is not None:
                inputs = ImageInputs(
                    source=rows.images,
                    encoder=encoder,
                    encoder_source=encoder_source,
                    cache_dir=given.cache_folder,
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
                sharing=len(specs) if shared else 1,
                processes=processes,
            )
            runs.append(job)
    if shared:
        documents = _run([job for [job] in jobs], output, tracking, shared=True, as_json=quiet)
    else:
        documents = [_run_task(runs, filled(output, runs[0].spec.name), tracking, as_json=quiet) for runs in jobs]
    if as_json and processes.is_first:
        say(True, documents[0] if len(documents) == 1 else {"runs": documents}, "")


@dataclass(frozen=True)
class _Recipes:
    """The recipe that was named, with the settings that were given."""

    name: str
    given: dict[str, Any]
    shared: bool

    def of(
        self,
        specs: Sequence["TaskSpec"],
        rows: Sequence[int] | None = None,
        backbone: "BackboneConfig | None" = None,
    ) -> list[Recipe]:
        """Each task's; one for all where they share a side network. Raises RecipeError."""
        if not self.shared:
            counts = [None] * len(specs) if rows is None else [[count] for count in rows]
            return [
                named_recipe(self.name, [spec], self.given, count, backbone)
                for spec, count in zip(specs, counts, strict=True)
            ]
        from training.multitask.shared import shared_recipe

        recipe = named_recipe(self.name, specs, self.given, rows, backbone)
        return [shared_recipe(recipe, specs)] * len(specs)


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

    train: PerTask
    validation: PerTask
    share: float | None
    renames: dict[str, str]

    def read(self, spec: "TaskSpec", seed: int, arguments: ImageArguments) -> _Rows:
        """The rows of one task. Raises DataError, or RecipeError for a file that cannot be split."""
        from training.data import kept_together, known_names, split

        renames = {name: column for name, column in self.renames.items() if name in known_names(spec)}
        reading: dict[str, Any] = {"renames": renames} if renames else {}
        images = arguments.open_source() if spec.images else None
        training = self._labelled(self.train.required("--train", spec.name), spec, renames, images)
        if self.share is None:
            path = self.validation.required("--validation", spec.name)
            return _Rows(training, self._labelled(path, spec, renames, images), reading, images)
        training, validation = split(training, self.share, seed, by=kept_together(spec))
        return _Rows(training, validation, {**reading, "validation_share": self.share}, images)

    def _labelled(
        self, path: str, spec: "TaskSpec", renames: dict[str, str], images: "ImageSource | FeatureFile | None"
    ) -> "Labelled":
        """The rows of a file, whose images are all there."""
        from training.data import read_labelled
        from training.images import check_images

        labelled = read_labelled(path, spec, renames)
        if images is not None:
            check_images(spec, path, labelled.examples, images)
        return labelled


def _check(
    specs: Sequence["TaskSpec"], output: str, validation: Sequence[str], share: int | None, *, shared: bool
) -> None:
    if bool(validation) == (share is not None):
        raise UserError(
            "give either --validation FILE, or --validation-share S to validate on a share of the training rows"
        )
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"task {twice[0]} is named twice; name it once")
    if shared and len(specs) < 2:
        raise UserError("--shared needs two tasks or more")
    if shared and PLACEHOLDER in output:
        raise UserError(f"--output {output}: with --shared, name one folder; each task's run is a folder in it")
    if len(specs) > 1 and not shared and PLACEHOLDER not in output:
        needed = f"{len(specs)} tasks need {PLACEHOLDER} in --output, such as runs/{PLACEHOLDER}: a run each"
        raise UserError(f"{needed}; or --shared, for one side network of all")


def _run_task(runs: Sequence["Job"], output: str, tracking: Tracking, *, as_json: bool) -> dict[str, Any]:
    """Train the run of one task, or its runs together. Return the document."""
    if len(runs) > 1:
        return run_sweep(runs, output, tracking, _truncated(runs[0]), as_json=as_json)
    return next(iter(_run(runs, output, tracking, as_json=as_json)), {})


def _run(
    jobs: Sequence["Job"], output: str, tracking: Tracking, *, shared: bool = False, as_json: bool
) -> list[dict[str, Any]]:
    """Train one side network; print the result of each task, or with `as_json` nothing. Return the documents."""
    from training.trainer import train as run_training
    from training.trainer import train_shared

    started = time.monotonic()
    truncated = [_truncated(job) for job in jobs]
    doubts = [
        length_warnings(job.spec, {f"{name} rows": share for name, share in shares.items()})
        + class_warnings(job.spec, job.training.examples, job.validation.examples)
        for job, shares in zip(jobs, truncated, strict=True)
    ]
    show_warnings([warning for warnings in doubts for warning in warnings], as_json=as_json)
    if not jobs[0].processes.is_first:
        train_shared(jobs, output) if shared else run_training(jobs[0], output)
        return []
    curves = Curves(output, jobs, tracking, shared=shared)
    with progress_bar(quiet=as_json) as bars:
        if shared:
            artifacts = train_shared(jobs, output, FollowedBars(bars, "shared", curves))
        else:
            artifacts = [run_training(jobs[0], output, FollowedBars(bars, jobs[0].spec.name, curves))]
    curves.finish()
    seconds = round(time.monotonic() - started, 1)
    documents: list[dict[str, Any]] = []
    for job, artifact, shares, warnings in zip(jobs, artifacts, truncated, doubts, strict=True):
        folder = str(Path(output) / job.spec.name) if shared else output
        documents.append(_report(job, artifact, folder, shares, warnings, seconds, as_json=as_json))
    return documents


def _report(
    job: "Job",
    artifact: "Artifact",
    output: str,
    truncated: dict[str, float],
    doubts: list[str],
    seconds: float,
    *,
    as_json: bool,
) -> dict[str, Any]:
    """Print one task's result, or with `as_json` nothing. Return the document."""
    from training.baseline import baseline_of

    spec = job.spec
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
        "seconds": seconds,
        "warnings": doubts + unbeaten,
    }


def _truncated(job: "Job") -> dict[str, float]:
    """The share of the training and of the validation rows that are longer than the spec allows."""
    from training.batches import count_truncated

    parts = {"training": job.training.examples, "validation": job.validation.examples}
    return {
        name: count_truncated(job.spec, job.tokenizer, examples) / len(examples) for name, examples in parts.items()
    }
