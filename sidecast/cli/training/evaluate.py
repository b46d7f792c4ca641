"""`sidecast evaluate`: score a run folder, a published version or a running server on labelled rows, by one code."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from side_registry import KINDS, Registry, TaskRef, TaskSpec, read_artifact
from side_registry.manifest import Artifact
from sidecast.cli import options
from sidecast.cli.answers import answer_values
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar, say, scores_text
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

if TYPE_CHECKING:
    from training.data import Example
    from training.evaluation import ReadImages
    from training.images import EncoderSource

SERVER_ROWS = 64
SERVER_BYTES = 8 << 20
"""Most rows in one request to a server, and bytes of images, but for a single row."""

Rows = Sequence[Any]
Step = Callable[[int, int], None]
Answers = tuple[list[Any], list[bool]]
"""One answer a row; for each, whether the row's text was longer than the spec's `max_source_tokens`."""
How = tuple[str, str, str | None]
"""Values of --device, --dtype and --quantize; the last is None if it was not given."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is evaluated: its spec, and how it answers rows."""

    spec: TaskSpec
    version: int | None
    answer: Callable[[Rows, Step, "ReadImages | None"], Answers]
    artifact: Artifact | None = None
    """None on a server, whose rows hold the bytes of images."""
    device: Any = "cpu"
    encoder_source: "EncoderSource | None" = None
    """Where a run says that its vision encoder is."""


@click.command(short_help="Score a run, a published version or a server on labelled rows.")
@click.argument("task")
@click.option("--data", required=True, metavar="FILE", help="Labelled rows: .jsonl, .csv, .tsv, .parquet.")
@click.option("--run", metavar="RUN", help="A run folder.")
@options.registry
@options.server
@options.backbone
@click.option("--predictions", metavar="FILE", help="Write each row and its answer there, as JSON lines.")
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
    predictions: str | None,
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
    from training.images import check_images
    from training.metrics import rows_to_answer, score_values

    arguments = ImageArguments(images, features, vision, vision_layer, vision_size, cache_dir)
    known = _known_spec(task)
    name = known.name if known is not None and task.endswith(".toml") else task
    source, where = options.choose(run=run, registry=registry, server=server)
    if source == "server":
        candidate = _on_server(name, where)
    elif source == "run":
        candidate = _in_run(name, where, backbone, (device, dtype, quantize))
    else:
        candidate = _in_registry(name, where, backbone, (device, dtype, quantize))
    spec = _as_read(candidate.spec, known)
    arguments.check_used([spec])
    arguments.check(spec, has_encoder=candidate.artifact is None or _encoder_of(candidate, arguments) is not None)
    check_renames([spec], renames)
    examples = read_to_evaluate(data, spec, renames)
    is_labelled = examples[0].target is not None
    if predictions is not None:
        _open(predictions, "a").close()  # report a mistake before the work, not after it
    elif not is_labelled:
        column = renames.get(spec.target, spec.target)
        remedy = f"name the column with --rename {spec.target}=COLUMN, or give --predictions FILE for the answers alone"
        raise UserError(f"{data} has no column {column!r}, so there is nothing to score; {remedy}")
    rows = rows_to_answer(spec, examples) if is_labelled else [example.fields for example in examples]
    faults: list[str] = []
    with progress_bar(quiet=as_json) as bars:
        read_images = None
        if spec.images:
            pictures = arguments.open_source()
            check_images(spec, data, examples, pictures)
            if candidate.artifact is None:
                rows = arguments.send_bytes(spec, rows, pictures)
            else:
                progress = Bars(bars, spec.name).images
                encoder = _encoder_of(candidate, arguments)
                made = arguments.features_of(candidate.artifact, pictures, encoder, candidate.device, rows, progress)
                read_images = made.read
                faults = cache_warnings(spec, made.disk_fault)
        bar = bars.add_task(f"{spec.name}: answering", total=len(rows), note="")
        answers, truncated = candidate.answer(rows, lambda done, _: bars.update(bar, completed=done), read_images)
    plain = [answer_values(answer, spec.kind, spec.labels) for answer in answers]
    if predictions is not None:
        _write(predictions, examples, plain, truncated)
    metrics: dict[str, float] = {}
    baseline = None
    if is_labelled:
        metrics = score_values(spec, [_scored(answer, spec) for answer in plain], examples)
        baseline = baseline_of(spec, examples)
    score = metrics.get(spec.metric)
    share = sum(truncated) / len(rows)
    warnings = length_warnings(spec, {"rows": share}) + score_warnings(spec, score, baseline) + faults
    document = {
        "task": spec.name,
        "source": source,
        "version": candidate.version,
        "rows": len(examples),
        "metric": spec.metric,
        "score": score,
        "metrics": metrics,
        **baseline_document(score, baseline),
        "truncated": share,
        "warnings": warnings,
    }
    named = spec.name + (f" version {candidate.version}" if candidate.version else "")
    scored_text = f"{scores_text(metrics)} on {len(examples)} rows{baseline_text(baseline)}"
    say(as_json, document, f"{named}: {scored_text if is_labelled else _unscored(examples, predictions)}")
    show_warnings(warnings, as_json=as_json)


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


def _in_run(task: str, run: str, backbone: str | None, how: How) -> Candidate:
    from training.images import EncoderSource
    from training.run_folder import RunFolder

    artifact = read_artifact(run)
    if task != artifact.manifest.task:
        raise UserError(f"{run} is a run of task {artifact.manifest.task}, not of {task}")
    folder = RunFolder(run)
    vision = folder.vision_source()
    encoder_source = None if vision is None else EncoderSource(**vision)
    return _local(artifact, None, backbone or folder.backbone_source(), how, encoder_source)


def _in_registry(task: str, url: str, backbone: str | None, how: How) -> Candidate:
    if backbone is None:
        raise UserError("--registry needs --backbone B: the folder or hub id that the side network was trained on")
    ref = TaskRef.parse(task)
    registry = Registry.open(url)
    version = registry.state().resolve(ref)
    with tempfile.TemporaryDirectory(prefix="sidecast-") as folder:
        artifact = registry.download(ref.task, version, Path(folder) / "version")
        return _local(artifact, version, backbone, how)


def _encoder_of(candidate: Candidate, arguments: ImageArguments) -> "EncoderSource | None":
    """The encoder that the command line names, else that of the run."""
    return arguments.encoder_source or candidate.encoder_source


def _local(
    artifact: Artifact, version: int | None, backbone: str, how: How, encoder_source: "EncoderSource | None" = None
) -> Candidate:
    from training.evaluation import load_model, predict_rows

    device, dtype, quantize = how
    loaded, tokenizer = options.load_backbone(
        backbone, device, dtype, quantize or artifact.manifest.backbone.quantization
    )
    model = load_model(artifact, loaded, tokenizer)

    def answer(rows: Rows, step: Step, read_images: "ReadImages | None") -> Answers:
        return predict_rows(model, loaded, tokenizer, rows, step, read_images)

    return Candidate(
        spec=artifact.manifest.spec,
        version=version,
        answer=answer,
        artifact=artifact,
        device=loaded.device,
        encoder_source=encoder_source,
    )


def _on_server(task: str, address: str) -> Candidate:
    from serving.client import Client

    ref = TaskRef.parse(task)
    client = Client(address)
    info = client.task(task)
    version = ref.version or info.serving.get(ref.alias or "production")
    if version is not None:
        info = client.task(f"{ref.task}:{version}")
    if info.spec is None:
        raise UserError(f"{address} has no version of {ref.task} loaded; see sidecast tasks --server {address}")
    size = min(SERVER_ROWS, info.spec.max_rows)

    def answer(rows: Rows, step: Step, _: "ReadImages | None") -> Answers:
        answers: list[Any] = []
        for request in _requests(rows, size):
            # pinned, so that one version is scored even while the server swaps
            answers += client.predict(ref.task if version else task, request, version=version)
            step(len(answers), len(rows))
        return answers, [getattr(answer, "truncated", False) for answer in answers]

    return Candidate(spec=_spec_of(ref.task, info.spec), version=version, answer=answer)


def _requests(rows: Rows, size: int) -> Iterator[list[Any]]:
    """Rows in requests of at most `size` rows, and of about SERVER_BYTES of images."""
    request: list[Any] = []
    total = 0
    for row in rows:
        size_of_row = sum(len(value) for value in row.values() if isinstance(value, bytes))
        if request and (len(request) == size or total + size_of_row > SERVER_BYTES):
            yield request
            request = []
            total = 0
        request.append(row)
        total += size_of_row
    if request:
        yield request


def _spec_of(task: str, described: Any) -> TaskSpec:
    """Make a spec, which reads data files, from the server's description of a task."""
    names = [field.name for field in fields(described) if field.name != "fields"]  # these follow from the template
    values = {name: getattr(described, name) for name in names}
    return TaskSpec(name=task, **values)


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


def _scored(answer: dict[str, Any], spec: TaskSpec) -> Any:
    """What metrics compare with the target: the first column, and with several labels the scores too."""
    from training.metrics import LabelScores

    kind = KINDS[spec.kind]
    if kind.has_thresholds:
        return LabelScores(answer["labels"], list(answer["scores"].values()))
    return answer[kind.columns[0].name]
