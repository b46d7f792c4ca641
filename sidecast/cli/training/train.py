"""`sidecast train`: train a side network for each of one or more tasks, or one for all, into run folders."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar, say, scores_text
from sidecast.cli.percent import Share
from sidecast.cli.settings import GroupedOption, setting_options
from sidecast.cli.training.curves import Curves, FollowedBars, Tracking
from sidecast.cli.training.image_options import image_options_by_task
from sidecast.cli.training.on_ray import RememberingCommand, train_on_ray, words_of
from sidecast.cli.training.sweep import Several, combinations, run_sweep
from sidecast.cli.training.task_files import PerTask, filled
from sidecast.cli.training.train_inputs import Files, Recipes, arguments_of, check, image_inputs
from sidecast.cli.training.verdict import (
    baseline_document,
    baseline_text,
    cache_warnings,
    class_warnings,
    length_warnings,
    score_warnings,
    show_warnings,
)
from training.recipes.named_recipes import RecipeName
from training.recipes.recipe import SWEPT, Recipe

if TYPE_CHECKING:
    from side_registry.manifest import Artifact
    from training.job import Job

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
    from training.job import Job
    from training.processes import join_processes

    specs = [load_task(task) for task in tasks]
    tracking = Tracking(tensorboard, wandb)
    tracking.check()
    check(specs, output, validation_files, validation_share, shared=shared)
    check_renames(specs, renames)
    given_settings = {name: value for name, value in recipe.items() if value is not None}
    choices = [Recipes(recipe_name, settings, shared) for settings in combinations(given_settings)]
    if shared and len(choices) > 1:
        raise UserError("--shared trains one run: give each setting one value")
    for chosen in choices:
        for spec, settings in zip(specs, chosen.of(specs), strict=True):
            settings.side_config(spec, 1 if spec.images else None)  # report mistakes before the backbone loads
    if ray_workers:
        train_on_ray(words_of(click.get_current_context()), ray_workers, ray_address, device, output)
    names = [spec.name for spec in specs]
    image_arguments = arguments_of(specs, images, features, (vision, vision_layer, vision_size, cache_dir))
    files = Files(
        PerTask.parse("--train", train_files, names),
        PerTask.parse("--validation", validation_files, names),
        None if validation_share is None else validation_share / WHOLE,
        renames,
    )
    seed = choices[0].given.get("seed", 0)
    data = [files.read(spec, seed, given) for spec, given in zip(specs, image_arguments, strict=True)]
    processes, device = join_processes(device)
    quiet = as_json or not processes.is_first
    loaded, tokenizer = options.load_backbone(backbone, device, dtype, quantize)
    inputs = image_inputs(data, image_arguments, loaded.device)
    counts = [len(rows.training.examples) for rows in data]
    recipes = [chosen.of(specs, counts, loaded.config) for chosen in choices]
    jobs = [
        [
            Job(
                spec=spec,
                backbone=loaded,
                backbone_source=options.backbone_source(backbone),
                tokenizer=tokenizer,
                training=rows.training,
                validation=rows.validation,
                recipe=settings,
                reading=rows.reading,
                images=pictures,
                sharing=len(specs) if shared else 1,
                processes=processes,
            )
            for settings in runs
        ]
        for spec, rows, pictures, runs in zip(specs, data, inputs, zip(*recipes, strict=True), strict=True)
    ]
    if shared:
        documents = _run([job for [job] in jobs], output, tracking, shared=True, as_json=quiet)
    else:
        documents = [_run_task(runs, filled(output, runs[0].spec.name), tracking, as_json=quiet) for runs in jobs]
    if as_json and processes.is_first:
        say(True, documents[0] if len(documents) == 1 else {"runs": documents}, "")


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
