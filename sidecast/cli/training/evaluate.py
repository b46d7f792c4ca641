"""`sidecast evaluate`: score a run folder, a published version or a running server on labelled rows, by one code."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from side_registry import KINDS, TaskRef, TaskSpec
from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar, say, scores_text, show_table
from sidecast.cli.training.candidates import (
    Backbones,
    Candidate,
    answers_of,
    check_images_given,
    in_registry,
    in_run,
    on_server,
)
from sidecast.cli.training.image_options import ImageArguments, image_options
from sidecast.cli.training.verdict import (
    baseline_document,
    baseline_text,
    length_warnings,
    score_warnings,
    show_warnings,
)

if TYPE_CHECKING:
    from training.data import Example
    from training.metrics.classes import ClassScores


@click.command(short_help="Score a run, a published version or a server on labelled rows.")
@click.argument("task")
@click.option("--data", required=True, metavar="FILE", help="Labelled rows: .jsonl, .csv, .tsv, .parquet.")
@click.option("--run", metavar="RUN", help="A run folder.")
@options.registry
@options.server
@options.backbone
@click.option("--report", is_flag=True, help="Precision, recall and F1 of each class too.")
@click.option("--predictions", metavar="FILE", help="Write each row and its answer there, as JSON lines.")
@click.option(
    "--plots", metavar="FOLDER", help="Write pictures there: of a classification or a regression, as PNG files."
)
@image_options
@options.rename
@options.device
@options.dtype
@options.option("--quantize", type=options.QUANTIZE, help="Bits of the backbone's matrices.  [default: as trained]")
@options.as_json
def evaluate(
    task: str,
    data: str,
    run: str | None,
    registry: str | None,
    server: str | None,
    backbone: str | None,
    report: bool,
    predictions: str | None,
    plots: str | None,
    images: str | None,
    features: str | None,
    vision: str | None,
    vision_layer: int | None,
    vision_size: int | None,
    cache_dir: str | None,
    renames: dict[str, str],
    device: str,
    dtype: str,
    quantize: str | None,
    as_json: bool,
) -> None:
    """Score TASK on labelled rows: what a run folder, a registry (with --backbone) or a server answers.

    TASK may be a task spec's TOML file; in a registry or on a server also an alias or a version: sst2@canary, sst2:7.
    All three ways go through the same code, so they give the same answers. Rows without targets are not scored:
    --predictions has their answers.
    """
    from training.baseline import baseline_of
    from training.data import check_renames, read_to_evaluate
    from training.metrics import evaluation_of, rows_to_answer
    from training.plots import draw_evaluation

    arguments = ImageArguments(images, features, vision, vision_layer, vision_size, cache_dir)
    known = _known_spec(task)
    name = known.name if known is not None and task.endswith(".toml") else task
    source, where = options.choose(run=run, registry=registry, server=server)
    candidate = _find(name, source, where, backbone, Backbones(device, dtype, quantize))
    spec = _as_read(candidate.spec, known)
    check_images_given(candidate, spec, arguments)
    check_renames([spec], renames)
    examples = read_to_evaluate(data, spec, renames)
    is_labelled = examples[0].target is not None
    if report and not KINDS[spec.kind].has_labels:
        raise UserError(f"--report is for tasks with classes, and {spec.name} is a {spec.kind} task; leave it out")
    if plots is not None:
        _check_plots(plots, spec, data, is_labelled=is_labelled)
    _check_predictions(predictions, spec, data, renames, is_labelled=is_labelled)
    rows = rows_to_answer(spec, examples) if is_labelled else [example.fields for example in examples]
    with progress_bar(quiet=as_json) as bars:
        answered = answers_of(candidate, spec, rows, examples, data, arguments, bars)
    if predictions is not None:
        _write(predictions, examples, answered.answers, answered.truncated)
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    classes: dict[str, ClassScores] = {}
    baseline = None
    drawn: list[str] = []
    if is_labelled:
        evaluation = evaluation_of(spec, answered.values(spec), answered.confidences, examples)
        metrics, intervals, classes = evaluation.scores, evaluation.intervals, evaluation.classes
        baseline = baseline_of(spec, examples)
    if plots is not None:
        drawn = _draw(plots, draw_evaluation(spec, answered.values(spec), answered.confidences, examples))
    score = metrics.get(spec.metric)
    share = sum(answered.truncated) / len(rows)
    warnings = length_warnings(spec, {"rows": share}) + score_warnings(spec, score, baseline)
    warnings += answered.faults
    document = {
        "task": spec.name,
        "source": source,
        "version": candidate.version,
        "rows": len(examples),
        "metric": spec.metric,
        "score": score,
        "metrics": metrics,
        "intervals": intervals,
        **({"classes": {label: asdict(scores) for label, scores in classes.items()}} if report else {}),
        **baseline_document(score, baseline),
        "truncated": share,
        **({"plots": drawn} if drawn else {}),
        "warnings": warnings,
    }
    named = spec.name + (f" version {candidate.version}" if candidate.version else "")
    scored_text = f"{scores_text(metrics, intervals)} on {len(examples)} rows{baseline_text(baseline)}"
    say(as_json, document, f"{named}: {scored_text if is_labelled else _unscored(examples, predictions)}")
    if report and not as_json:
        _show_classes(classes)
    if drawn and not as_json:
        click.echo(f"pictures: {', '.join(drawn)}")
    show_warnings(warnings, as_json=as_json)


def _find(name: str, source: str, where: str, backbone: str | None, backbones: Backbones) -> Candidate:
    """What is scored: on a server, of a run or in a registry."""
    if source == "server":
        return on_server(name, where)
    if source == "run":
        return in_run(where, backbone, backbones, task=name)
    if backbone is None:
        raise UserError("--registry needs --backbone B: the folder or hub id that the side network was trained on")
    return in_registry(name, where, backbone, backbones)


def _show_classes(classes: Mapping[str, "ClassScores"]) -> None:
    show_table(
        ("class", "rows", "answered", "precision", "recall", "f1"),
        [
            (label, one.rows, one.answered, f"{one.precision:.4f}", f"{one.recall:.4f}", f"{one.f1:.4f}")
            for label, one in classes.items()
        ],
    )


def _check_plots(folder: str, spec: TaskSpec, data: str, *, is_labelled: bool) -> None:
    """Report a mistake before the work, not after it, and make the folder."""
    from training.plots import PLOTTED_KINDS, check_can_draw

    if spec.kind not in PLOTTED_KINDS:
        kinds = " and ".join(PLOTTED_KINDS)
        raise UserError(
            f"--plots is for tasks of the kinds {kinds}, and {spec.name} is a {spec.kind} task; leave it out"
        )
    if not is_labelled:
        raise UserError(f"--plots compares answers with targets, and the rows of {data} have none; leave it out")
    check_can_draw()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--plots {folder} cannot be written: {error.strerror}") from None


def _check_predictions(
    path: str | None, spec: TaskSpec, data: str, renames: Mapping[str, str], *, is_labelled: bool
) -> None:
    """Report before the work a file that cannot be written, or rows without targets and no file for their answers."""
    if path is not None:
        _open(path, "a").close()
    elif not is_labelled:
        column = renames.get(spec.target, spec.target)
        remedy = f"name the column with --rename {spec.target}=COLUMN, or give --predictions FILE for the answers alone"
        raise UserError(f"{data} has no column {column!r}, so there is nothing to score; {remedy}")


def _draw(folder: str, pictures: Mapping[str, bytes]) -> list[str]:
    """Write the pictures; return their paths."""
    try:
        for name, picture in pictures.items():
            (Path(folder) / name).write_bytes(picture)
    except OSError as error:
        raise UserError(f"--plots {folder} cannot be written: {error.strerror}") from None
    return [str(Path(folder) / name) for name in pictures]


def _known_spec(task: str) -> TaskSpec | None:
    """The spec in a TOML file, or of a built-in task; None for another name."""
    from training.builtin_tasks import builtin_tasks, load_task

    if task.endswith(".toml"):  # as `train` takes it
        return load_task(task)
    return builtin_tasks().get(TaskRef.parse(task).task)


def _as_read(spec: TaskSpec, known: TaskSpec | None) -> TaskSpec:
    """The candidate's spec, with the known one's `label_index`: servers and older artifacts do not tell theirs."""
    if known is None or not known.label_index or known.labels != spec.labels:
        return spec
    return spec.model_copy(update={"label_index": True})


def _unscored(examples: Sequence[Any], predictions: str | None) -> str:
    return f"{len(examples)} rows without targets, so no score; answers in {predictions}"


def _write(
    path: str, examples: Sequence["Example"], answers: Sequence[dict[str, Any]], truncated: Sequence[bool]
) -> None:
    """A line for each example, which `answers` begin with: what it is, and what `predict --json` says of an answer."""
    try:
        with _open(path, "w") as file:
            for example, answer, cut in zip(examples, answers, truncated, strict=False):
                identity = example.line if example.id is None else example.id
                row = {"id": identity, "inputs": example.fields, "target": example.target, **answer, "truncated": cut}
                file.write(json.dumps(row, ensure_ascii=False, default=sorted) + "\n")  # a set of labels
    except OSError as error:
        raise UserError(f"--predictions {path} cannot be written: {error.strerror}") from None


def _open(path: str, mode: str) -> IO[str]:
    try:
        return Path(path).open(mode, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--predictions {path} cannot be written: {error.strerror}") from None
