"""`sidecast evaluate`: score a run folder, a published version or a running server on labelled rows, by one code."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import click

from side_registry import KINDS, Registry, TaskRef, TaskSpec, read_artifact
from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar, say, scores_text

SERVER_ROWS = 64
"""Rows in one request to a server."""

Rows = Sequence[dict[str, str]]
Step = Callable[[int, int], None]
How = tuple[str, str, str | None]
"""Values of --device, --dtype and --quantize; the last is None if it was not given."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is evaluated: its spec, and how it answers rows."""

    spec: TaskSpec
    version: int | None
    answer: Callable[[Rows, Step], list[Any]]


@click.command(short_help="Score a run, a published version or a server on labelled rows.")
@click.argument("task")
@click.option("--data", required=True, metavar="FILE", help="Labelled rows: .jsonl, .csv, .tsv, .parquet.")
@click.option("--run", metavar="RUN", help="A run folder.")
@options.registry
@options.server
@options.backbone
@click.option("--predictions", metavar="FILE", help="Write each row's answer there, as JSON lines.")
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
    device: str,
    dtype: str,
    quantize: str | None,
    as_json: bool,
) -> None:
    """Score TASK on labelled rows: what a run folder, a registry (with --backbone) or a server answers.

    TASK may be a task spec's TOML file; in a registry or on a server also an alias or a version: sst2@canary, sst2:7.
    All three ways go through the same code, so they give the same answers.
    """
    from training.builtin_tasks import load_task
    from training.data import read_examples
    from training.metrics import rows_to_answer, score_values

    if task.endswith(".toml"):  # as `train` takes it
        task = load_task(task).name
    source, where = options.choose(run=run, registry=registry, server=server)
    if source == "server":
        candidate = _on_server(task, where)
    elif source == "run":
        candidate = _in_run(task, where, backbone, (device, dtype, quantize))
    else:
        candidate = _in_registry(task, where, backbone, (device, dtype, quantize))
    examples = read_examples(data, candidate.spec)
    if predictions is not None:
        _open(predictions, "a").close()  # report a mistake before the work, not after it
    rows = rows_to_answer(candidate.spec, examples)
    with progress_bar(quiet=as_json) as bars:
        bar = bars.add_task(f"{candidate.spec.name}: answering", total=len(rows), note="")
        answers = [_plain(each) for each in candidate.answer(rows, lambda done, _: bars.update(bar, completed=done))]
    if predictions is not None:
        _write(predictions, answers[: len(examples)])
    scored = KINDS[candidate.spec.kind].columns[0].name
    values = [answer[scored] for answer in answers]
    metrics = score_values(candidate.spec, values, examples)
    document = {
        "task": candidate.spec.name,
        "source": source,
        "version": candidate.version,
        "rows": len(examples),
        "metric": candidate.spec.metric,
        "score": metrics[candidate.spec.metric],
        "metrics": metrics,
    }
    name = candidate.spec.name + (f" version {candidate.version}" if candidate.version else "")
    say(as_json, document, f"{name}: {scores_text(metrics)} on {len(examples)} rows")


def _in_run(task: str, run: str, backbone: str | None, how: How) -> Candidate:
    from training.run_folder import RunFolder

    artifact = read_artifact(run)
    if task != artifact.manifest.task:
        raise UserError(f"{run} is a run of task {artifact.manifest.task}, not of {task}")
    source = backbone or RunFolder(run).backbone_source()
    return Candidate(spec=artifact.manifest.spec, version=None, answer=_local(artifact, source, how))


def _in_registry(task: str, url: str, backbone: str | None, how: How) -> Candidate:
    if backbone is None:
        raise UserError("--registry needs --backbone B: the folder or hub id that the side network was trained on")
    ref = TaskRef.parse(task)
    registry = Registry.open(url)
    version = registry.state().resolve(ref)
    with tempfile.TemporaryDirectory(prefix="sidecast-") as folder:
        artifact = registry.download(ref.task, version, Path(folder) / "version")
        answer = _local(artifact, backbone, how)
    return Candidate(spec=artifact.manifest.spec, version=version, answer=answer)


def _local(artifact: Any, backbone: str, how: How) -> Callable[[Rows, Step], list[Any]]:
    from training.evaluation import load_model, predict

    device, dtype, quantize = how
    loaded, tokenizer = options.load_backbone(
        backbone, device, dtype, quantize or artifact.manifest.backbone.quantization
    )
    model = load_model(artifact, loaded, tokenizer)
    return lambda rows, step: predict(model, loaded, tokenizer, rows, step)


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

    def answer(rows: Rows, step: Step) -> list[Any]:
        answers: list[Any] = []
        for start in range(0, len(rows), size):
            # pinned, so that one version is scored even while the server swaps
            answers += client.predict(ref.task if version else task, rows[start : start + size], version=version)
            step(len(answers), len(rows))
        return answers

    return Candidate(spec=_spec_of(ref.task, info.spec), version=version, answer=answer)


def _spec_of(task: str, described: Any) -> TaskSpec:
    """Make a spec, which reads data files, from the server's description of a task."""
    names = [field.name for field in fields(described) if field.name != "fields"]  # these follow from the template
    values = {name: getattr(described, name) for name in names}
    return TaskSpec(name=task, **values)


def _write(path: str, answers: Sequence[dict[str, Any]]) -> None:
    with _open(path, "w") as file:
        for answer in answers:
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")


def _open(path: str, mode: str) -> IO[str]:
    try:
        return Path(path).open(mode, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--predictions {path} cannot be written: {error.strerror}") from None


def _plain(answer: Any) -> dict[str, Any]:
    """A class, value, text or vector, from the model or from a client, as JSON."""
    if hasattr(answer, "label"):
        scores = answer.scores
        return {
            "label": answer.label,
            "score": answer.score,
            "scores": list(getattr(scores, "values", lambda: scores)()),
        }
    if hasattr(answer, "values"):
        return {"embedding": list(answer.values)}
    return {"value": answer.value} if hasattr(answer, "value") else {"text": answer.text}
