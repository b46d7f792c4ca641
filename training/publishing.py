"""Publish a run from Python, behind a gate: it is measured again on labelled rows first, and refused with figures."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ladder import Backbone, Tokenizer
from side_registry import Published, Registry
from side_registry.manifest import Artifact, check_publishable, read_artifact, with_provenance
from side_registry.specs.task import TaskSpec
from table_files import ImageSource
from training.data import NO_RENAMES, Example, Renames, data_sha256, read_examples
from training.errors import RequirementError
from training.evaluation import answer_value, confidences_of
from training.loaded_run import LoadedRun, load_run
from training.metrics import measure
from training.publish_gate import GATE, PublishGate, Rival, gate_text
from vision import VisionEncoder


def publish(
    run: str | Path,
    registry: Registry,
    backbone: Backbone,
    tokenizer: Tokenizer,
    *,
    data: str | Path,
    require: Sequence[str] = (),
    better_than: str | None = None,
    renames: Renames = NO_RENAMES,
    encoder: VisionEncoder | None = None,
    images: ImageSource | None = None,
    alias: str | None = None,
    allow_untrained: bool = False,
    author: str | None = None,
    message: str = "",
) -> Published:
    """Measure a run on labelled rows, and publish it if it passes; without a gate, `Registry.publish` is enough.

    What was required and measured is in the version's manifest, `provenance["publish_gate"]`, and in the commit's
    message.

    Args:
        backbone, tokenizer: those of its training, as `load_run` takes them; also of the version under `better_than`.
        data: labelled rows: .jsonl, .csv, .tsv or .parquet.
        require: such as `accuracy>=0.90`; any score that `sidecast evaluate` has for the task.
        better_than: an alias, such as production. A task without any version has nothing to be better than.
        renames: as `read_examples` takes them.
        encoder, images: of a task with images, as `load_run` and `LoadedRun.score` take them.
        alias, allow_untrained, author, message: as `Registry.publish` takes them.

    Raises:
        GateRefused: the run does not measure what is required; nothing was published.
        RequirementError: a requirement that cannot be read, or no requirement at all.
        UnknownAlias: the task has versions, and none under `better_than`.
        DataError, MetricError, RunError, ArtifactError: as `load_run`, `read_examples` and `Registry.publish`.
    """
    artifact = read_artifact(run)
    check_publishable(artifact.manifest, run, allow_untrained=allow_untrained)
    spec = artifact.manifest.spec
    gate = make_gate(spec, require, better_than)
    examples = read_examples(data, spec, renames)
    other = rival_version(registry, spec.name, better_than)
    loaded = load_run(run, backbone, tokenizer, encoder)
    scores = _scores(gate, loaded, examples, examples, images)
    rival = None
    if better_than is not None and other is not None:
        with tempfile.TemporaryDirectory(prefix="sidecast-") as folder:
            theirs = registry.download(spec.name, other, Path(folder) / "version")
            against = load_run(theirs.folder, backbone, tokenizer, encoder)
        rows = read_examples(data, spec_of_rival(spec, against.spec), renames)
        rival = Rival(alias=better_than, version=other, scores=_scores(gate, against, examples, rows, images))
    record = gate.check(scores, rival, len(examples), data_sha256(data))
    with gated(artifact, record) as folder:
        text = message_with_gate(message, record)
        return registry.publish(folder, alias=alias, allow_untrained=allow_untrained, author=author, message=text)


def make_gate(spec: TaskSpec, require: Sequence[str], better_than: str | None) -> PublishGate:
    """The gate of these settings. Raises RequirementError: unreadable, or nothing is required."""
    gate = PublishGate.parse(spec, require, better_than)
    if not require and better_than is None:
        raise RequirementError("the gate", "nothing is required; give a requirement or the alias to be better than")
    return gate


def rival_version(registry: Registry, task: str, better_than: str | None) -> int | None:
    """The version under an alias; None without an alias, or where the task has no version yet.

    Raises:
        UnknownAlias: it has versions, and not this alias.
    """
    known = registry.state().live.get(task)
    return None if better_than is None or known is None else known.at(better_than)


def spec_of_rival(spec: TaskSpec, rival: TaskSpec) -> TaskSpec:
    """How rows are read for a version of the same task: the fields of its template, the targets of `spec`.

    Raises:
        RequirementError: it is another kind of task.
    """
    if spec.kind != rival.kind:
        raise RequirementError("--better-than", f"that version of {spec.name} is {rival.kind}, this run is {spec.kind}")
    return spec.model_copy(update={"template": rival.template, "images": rival.images})


@contextmanager
def gated(artifact: Artifact, record: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to publish, which has the artifact with a gate's record in its provenance; the run stays as it is."""
    with tempfile.TemporaryDirectory(prefix="sidecast-publish-") as folder:
        with_provenance(artifact, folder, {GATE: record})
        yield Path(folder)


def message_with_gate(message: str, record: Mapping[str, Any]) -> str:
    """A commit's message, and what the gate measured."""
    return f"{message}; {gate_text(record)}" if message else gate_text(record)


def _scores(
    gate: PublishGate, run: LoadedRun, examples: Sequence[Example], rows: Sequence[Example], images: ImageSource | None
) -> dict[str, float]:
    """The gate's scores of a loaded version.

    Args:
        examples: whose targets are scored.
        rows: the same rows, as this version reads them.
    """
    answers = run.answers(rows, images)
    values = [answer_value(answer) for answer in answers]
    return measure(gate.spec, values, examples, gate.names, confidences_of(answers))
