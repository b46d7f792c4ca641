"""Absorb: each teacher answers all texts, its answers teach a side network, and a gate decides what is published.

The teachers are loaded one at a time. Their side networks train together, on one backbone pass a batch.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladder import Backbone, Tokenizer
from side_registry import Registry
from side_registry.manifest import Artifact
from side_registry.specs.task import TASK_NAME, TASK_RULE, TaskSpec
from training.absorbing.folders import TeacherFolder
from training.absorbing.gate import AbsorbGate, agreement_of, labelled_scores
from training.absorbing.kept_answers import kept_answers
from training.absorbing.savings import LATENCY_ROWS, Cost, Savings, cost_after
from training.absorbing.teacher import (
    HfTeacher,
    check_labels,
    in_order_of,
    load_teacher_model,
    teacher_labels,
    tensor_bytes,
    texts_of,
)
from training.absorbing.train_together import train_together
from training.data import Example, Labelled, split
from training.distillation import KnownAnswers
from training.errors import DataError, GateRefused, RecipeError, TeacherError
from training.job import Job, Progress, Silent
from training.loaded_run import load_run
from training.publishing import gated, message_with_gate
from training.recipes.recipe import Recipe

HELD_OUT = 0.1
"""Share of the texts that the gate measures on, and of the rest, the share by which the best epoch is chosen."""
LEAST_TEXTS = 20
"""To train on, to choose an epoch by and to measure on."""
FIELD = "text"


@dataclass(frozen=True, kw_only=True)
class AbsorbPlan:
    """All that one run absorbs, and how."""

    specs: Sequence[TaskSpec]
    """A task for each teacher; they read the same prompts."""
    folders: Sequence[TeacherFolder]
    texts: Labelled
    """Rows without targets, of the fields of every spec."""
    labelled: Sequence[Labelled | None]
    """Rows with targets of each spec, which its teacher and its side network are scored on; None: there are none."""
    backbone: Backbone
    backbone_source: str
    tokenizer: Tokenizer
    recipes: Sequence[Recipe]
    """Of each task; `teacher`, `distill` are set here."""
    gate: AbsorbGate
    output: Path
    """The run of each task is the folder of its name in it."""
    reading: Mapping[str, Any]
    """How the rows were read, as `Job.reading`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absorbed:
    """One teacher's result."""

    spec: TaskSpec
    folder: Path
    """Of the run."""
    measured: dict[str, float]
    """`agreement`; with labelled rows also the spec's metric, and `teacher_` and it."""
    rows: int
    """Held-out texts that agreement was measured on."""
    usual: float
    """Of classification: the share of the held-out texts that got the teacher's commonest label. Else 0."""
    faults: tuple[str, ...]
    """What the gate does not let pass; nothing where it passed."""
    record: dict[str, Any]
    """For the version's provenance."""
    artifact: Artifact

    @property
    def refusal(self) -> GateRefused | None:
        """The error of a result that the gate refused."""
        return GateRefused(self.spec.name, self.faults, self.rows) if self.faults else None

    def publish(self, registry: Registry, *, alias: str | None = None) -> int:
        """Publish the run with the gate's record; the new version. Raises GateRefused, and as `Registry.publish`."""
        if self.refusal is not None:
            raise self.refusal
        with gated(self.artifact, self.record) as folder:
            published = registry.publish(folder, alias=alias, message=message_with_gate("absorbed", self.record))
        return published.version


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taught:
    """What is kept of a teacher after it has answered."""

    cost: Cost
    training: Tensor
    validation: Tensor
    held_out: Tensor
    labelled: Tensor | None


def teacher_spec(folder: TeacherFolder, name: str, fields: Sequence[str] = (FIELD,)) -> TaskSpec:
    """The spec of a task with a teacher's labels, or of a regression where it answers one number.

    Args:
        name: of the task; empty: the folder's name.
        fields: one or two, which the teacher reads as a text or as a pair.

    Raises:
        TeacherError: another kind of model, or a folder's name that is none for a task.
        RecipeError: another number of fields.
    """
    if len(fields) not in (1, 2):
        raise RecipeError("field", list(fields), "given once, or twice for a model that reads a pair of texts")
    task = name or re.sub(r"[^A-Za-z0-9_-]+", "-", folder.path.resolve().name).strip("-_")
    if not TASK_NAME.fullmatch(task):
        raise TeacherError(folder.path, f"{task!r} is no name for a task; name it with TASK=FOLDER: {TASK_RULE}")
    template = " ".join(f"{field}: {{{field}}}" for field in fields) if len(fields) > 1 else f"{{{fields[0]}}}"
    labels = teacher_labels(folder)
    if labels:
        return TaskSpec(name=task, kind="classification", template=template, labels=labels)
    return TaskSpec(name=task, kind="regression", template=template)


def absorb(plan: AbsorbPlan, progress: Progress | None = None) -> tuple[list[Absorbed], Savings]:
    """Distil each teacher into a side network, and measure it. Nothing is published yet, see `Absorbed.publish`.

    Raises:
        TeacherError: a teacher that cannot be loaded, has other labels, or answers NaN or differently each time.
        DataError: too few texts.
        RecipeError, RunError, SideConfigError: as `training.trainer.train`.
    """
    _check(plan)
    progress = progress or Silent()
    if len(plan.texts.examples) < LEAST_TEXTS:
        why = (
            f"{len(plan.texts.examples)} different texts are too few, give {LEAST_TEXTS} at least; thousands are usual"
        )
        raise DataError("--texts", None, why)
    seed = plan.recipes[0].seed
    rest, held_out = split(plan.texts, HELD_OUT, seed)
    training, validation = split(rest, HELD_OUT, seed)
    parts = [training.examples, validation.examples, held_out.examples]
    taught = [_ask(plan, number, parts, progress) for number in range(len(plan.specs))]
    jobs = [_job(plan, number, taught[number], training, validation) for number in range(len(plan.specs))]
    answers = [
        KnownAnswers(identity=folder.identity, answers=theirs.training.to(plan.backbone.device))
        for folder, theirs in zip(plan.folders, taught, strict=True)
    ]
    folders = [plan.output / spec.name for spec in plan.specs]
    artifacts = train_together(jobs, answers, folders, progress)
    results: list[Absorbed] = []
    for number, artifact in enumerate(artifacts):
        results.append(_measure(plan, number, taught[number], held_out, artifact))
    return results, _savings(plan, taught, folders, held_out.examples)


def _check(plan: AbsorbPlan) -> None:
    names = [spec.name for spec in plan.specs]
    if len(set(names)) < len(names):
        raise RecipeError("tasks", names, "different: name each, TASK=FOLDER")
    first = plan.specs[0]
    for spec in plan.specs[1:]:
        if (spec.template, spec.max_source_tokens) != (first.template, first.max_source_tokens):
            rule = f"with the template and max_source_tokens of {first.name}, to share its texts; absorb it on its own"
            raise RecipeError(f"task {spec.name}", spec.template, rule)


def _ask(plan: AbsorbPlan, number: int, parts: Sequence[Sequence[Example]], progress: Progress) -> _Taught:
    """Load a teacher and let it answer all rows; afterwards it is freed."""
    spec = plan.specs[number]
    labelled = plan.labelled[number]
    teacher = load_teacher_model(plan.folders[number], plan.backbone.device)
    check_labels(spec, teacher)
    every = [*parts, [] if labelled is None else labelled.examples]
    rows = [texts_of(spec, example.fields) for part in every for example in part]
    outputs = in_order_of(spec, teacher, kept_answers(teacher, rows, plan.output, progress.teaching))
    training, validation, held_out, scored = outputs.split([len(part) for part in every])
    return _Taught(
        cost=_cost_before(teacher, spec, parts[-1]),
        training=training,
        validation=validation,
        held_out=held_out,
        labelled=None if labelled is None else scored,
    )


def _cost_before(teacher: HfTeacher, spec: TaskSpec, examples: Sequence[Example]) -> Cost:
    seconds = teacher.seconds([texts_of(spec, example.fields) for example in examples[:LATENCY_ROWS]])
    size = sum(file.stat().st_size for file in teacher.folder.weight_files)
    return Cost(weight_bytes=teacher.weight_bytes, file_bytes=size, seconds=statistics.median(seconds))


def _job(plan: AbsorbPlan, number: int, taught: _Taught, training: Labelled, validation: Labelled) -> Job:
    """The job of one task, whose targets are its teacher's answers."""
    spec = plan.specs[number]
    recipe = plan.recipes[number]
    share = recipe.distill or 1.0
    return Job(
        spec=spec,
        backbone=plan.backbone,
        backbone_source=plan.backbone_source,
        tokenizer=plan.tokenizer,
        training=_with_targets(spec, training, taught.training),
        validation=_with_targets(spec, validation, taught.validation),
        recipe=replace(recipe, distill=share, teacher=str(plan.folders[number].path)),
        reading={**plan.reading, "absorbed": True},
    )


def _with_targets(spec: TaskSpec, part: Labelled, answers: Tensor) -> Labelled:
    targets = _values(spec, answers)
    return Labelled(
        [replace(example, target=target) for example, target in zip(part.examples, targets, strict=True)], part.sha256
    )


def _values(spec: TaskSpec, answers: Tensor) -> list[Any]:
    """A teacher's answers as targets of the spec's kind."""
    if spec.kind == "regression":
        return answers.tolist()
    return [spec.labels[index] for index in answers.argmax(-1).tolist()]


def _measure(plan: AbsorbPlan, number: int, taught: _Taught, held_out: Labelled, artifact: Artifact) -> Absorbed:
    """Compare one side network with its teacher."""
    spec = plan.specs[number]
    labelled = plan.labelled[number]
    run = load_run(artifact.folder, plan.backbone, plan.tokenizer)
    teachers = _values(spec, taught.held_out)
    measured = {"agreement": agreement_of(spec, run.answers(held_out.examples), teachers)}
    if labelled is not None and taught.labelled is not None:
        theirs = _values(spec, taught.labelled)
        measured |= labelled_scores(spec, run.answers(labelled.examples), theirs, labelled.examples)
    usual = 0.0
    if spec.kind == "classification":
        usual = max(map(teachers.count, spec.labels)) / len(teachers)
    record = {
        "required": plan.gate.required,
        "measured": measured,
        "rows": len(held_out.examples),
        "data_sha256": plan.texts.sha256,
        "teacher": plan.folders[number].identity,
    }
    if labelled is not None:
        record |= {"labelled_rows": len(labelled.examples), "labelled_sha256": labelled.sha256}
    return Absorbed(
        spec=spec,
        folder=Path(artifact.folder),
        measured=measured,
        rows=len(held_out.examples),
        usual=usual,
        faults=plan.gate.faults(spec, measured),
        record=record,
        artifact=artifact,
    )


def _savings(
    plan: AbsorbPlan, taught: Sequence[_Taught], folders: Sequence[Path], examples: Sequence[Example]
) -> Savings:
    runs = [load_run(folder, plan.backbone, plan.tokenizer) for folder in folders]
    source = Path(plan.backbone_source)
    files = sum(file.stat().st_size for file in source.glob("*.safetensors")) if source.is_dir() else 0
    backbone_bytes = tensor_bytes(plan.backbone)
    before = Cost(
        weight_bytes=sum(one.cost.weight_bytes for one in taught),
        file_bytes=sum(one.cost.file_bytes for one in taught),
        seconds=sum(one.cost.seconds for one in taught),
    )
    after = cost_after(runs, files or backbone_bytes, [example.fields for example in examples[:LATENCY_ROWS]])
    return Savings(
        models=len(runs), before=before, after=after, backbone_bytes=backbone_bytes, threads=torch.get_num_threads()
    )
