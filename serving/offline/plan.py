"""Fixes what a run over a dataset is before it starts: its versions, files, columns and cut. A resumed run is the same.

Nothing is computed here. Knows no Ray, and uses the backbone only for its fingerprint.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ladder import load_backbone, load_tokenizer
from serving.errors import IncompatibleSide
from serving.offline.errors import MissingColumn, OutputTaken, UnreadableInput, WrongTask
from serving.offline.image_columns import check_images, find_encoder, find_ids
from serving.offline.inputs import InputFile, Inputs, Shard, list_files, scan, would_list
from serving.offline.outputs import Output, part_name
from serving.offline.table import OfflineTask, fields_of
from side_registry import Manifest, Registry, TaskRef
from table_files import open_images

Scanned = Callable[[int, int], None]
"""Called with the number of files that were read through, and of all files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a user asks for."""

    input: str
    """A file, a folder, a pattern or a URL of them."""
    output: str
    """A folder, or the URL of one."""
    tasks: tuple[str, ...]
    """Each as TASK, TASK@alias or TASK:7."""
    registry: str
    backbone: str
    renames: Mapping[str, str] = field(default_factory=dict)
    """Field of a template, or image of a task, to column of the input, where they differ."""
    images: str | None = None
    """A folder or a .parquet file of images that the rows name by id; None: the columns hold the images."""
    vision: str | None = None
    """The folder of the vision encoder, where a task reads images."""
    vision_layer: int | None = None
    """The encoder's hidden layer; None: its last state."""
    vision_size: int | None = None
    """Height and width of the encoder's input; None: the folder's own."""
    format: Literal["parquet", "jsonl"] = "parquet"
    dtype: str = "auto"
    shard_rows: int = 4096
    """Most rows of one part of the output. A part that was not complete is computed again after an interruption."""
    overwrite: bool = False

    @property
    def absolute(self) -> Self:
        """The same with absolute paths, for processes with other working directories."""
        is_folder = Path(self.backbone).expanduser().is_dir()
        names = [
            name for name in ("input", "output", "registry", "images", "vision") if getattr(self, name) is not None
        ]
        paths = {name: _absolute(getattr(self, name)) for name in names}
        return replace(self, backbone=_absolute(self.backbone) if is_folder else self.backbone, **paths)


def _absolute(where: str) -> str:
    return where if "://" in where else str(Path(where).expanduser().absolute())


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pinned(_Document):
    """A task, and the version that it meant when the run began."""

    asked: str
    """As the user named it."""
    task: str
    version: int
    name: str
    """What the names of its columns begin with."""
    columns: dict[str, str]
    """Field of the template, or image of the task, to column of the input."""


class Listed(_Document):
    """One file of the input."""

    path: str
    bytes: int
    modified_ns: int | None
    """Nanoseconds since 1970; None if the file system does not tell."""


class Job(_Document):
    """`_batch.json`: everything that decides what the output holds."""

    schema_version: Literal[1] = 1
    run: str
    """The run's id, the same after it was resumed. Replicas of an earlier run can then write no parts of this one."""
    registry: str
    """The registry's id: its address may change."""
    backbone: str
    fingerprint: str
    quantization: str
    dtype: str
    tasks: tuple[Pinned, ...]
    inputs: tuple[Listed, ...]
    rows: int
    shards: int
    shard_rows: int
    format: Literal["parquet", "jsonl"]
    vision: str | None = None
    """The vision encoder's fingerprint, where a task reads images."""
    images: str | None = None
    """The folder or file of images that the rows name."""

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """Read a `_batch.json`. Raises OutputTaken: it cannot be read."""
        try:
            return cls.model_validate(json.loads(data))
        except (ValueError, ValidationError):
            raise OutputTaken(
                where, "has a _batch.json that cannot be read; name a new folder or --overwrite"
            ) from None

    @property
    def document(self) -> bytes:
        """As `_batch.json`."""
        return self.model_dump_json(indent=1).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is, and what is left to do."""

    job: Job
    inputs: Inputs
    missing: tuple[Shard, ...]
    """Shards without a part."""

    @property
    def done_rows(self) -> int:
        """Rows of the shards that have a part."""
        return self.inputs.rows - sum(shard.rows for shard in self.missing)

    @property
    def tasks(self) -> list[OfflineTask]:
        """The tasks with their versions and columns."""
        return [
            OfflineTask(name=task.name, task=task.task, version=task.version, columns=task.columns)
            for task in self.job.tasks
        ]


def make_plan(wanted: Wanted, output: Output, scanned: Scanned = lambda done, total: None) -> Plan:
    """Plan a new run and write its `_batch.json`, or plan the rest of the run that the output holds.

    Call it while `output.held()`.

    Raises:
        OfflineError, RegistryError, BackboneError, EncoderError, ImageSourceError, IncompatibleSide: a mistake of the
            user's; each says what to do.
    """
    before = None if wanted.overwrite else _before(output)
    files = _input_files(wanted, output)
    registry = Registry.open(wanted.registry)
    versions = _versions(wanted, registry, before, output)
    manifests = [registry.manifest(ref.task, version) for ref, version in versions]
    pinned = _pinned(wanted, versions, manifests)
    vision = find_encoder(manifests, wanted.vision, wanted.vision_layer, wanted.vision_size)
    _check_source(wanted, manifests)
    backbone, fingerprint, quantization = _backbone(wanted, manifests)
    listed = tuple(Listed(path=file.path, bytes=file.bytes, modified_ns=file.modified_ns) for file in files)
    if before:
        _check_same(before.inputs, listed, output, "over other input files")
    inputs = scan(wanted.input, files, wanted.shard_rows, scanned)
    pinned = _with_ids(wanted, pinned, manifests, inputs.schema)
    _check_columns(pinned, manifests, inputs.schema)
    for task, manifest in zip(pinned, manifests, strict=True):
        check_images(manifest.spec, task.columns, inputs.schema, has_ids=wanted.images is not None, form=wanted.format)
    _check_writable(wanted, inputs.schema)
    job = Job(
        run=before.run if before else uuid.uuid4().hex,
        registry=registry.id,
        backbone=backbone,
        fingerprint=fingerprint,
        quantization=quantization,
        dtype=wanted.dtype,
        tasks=pinned,
        inputs=listed,
        rows=inputs.rows,
        shards=len(inputs.shards),
        shard_rows=wanted.shard_rows,
        format=wanted.format,
        vision=vision,
        images=wanted.images,
    )
    if before:
        check_resumable(before, job, output)
    else:
        output.begin(job.document)
    output.clean()
    done = output.parts()
    return Plan(job=job, inputs=inputs, missing=tuple(shard for shard in inputs.shards if shard.index not in done))


def check_resumable(before: Job, now: Job, output: Output) -> None:
    """Raises OutputTaken: `now` is not the run `before`."""
    for name, what in (
        ("registry", "from another registry"),
        ("tasks", "with other tasks or columns"),
        ("inputs", "over other input files"),
        ("rows", "over other input files"),
        ("quantization", "with another --quantize"),
        ("fingerprint", "with another backbone"),
        ("dtype", "with another --dtype"),
        ("shard_rows", "with another --shard-rows"),
        ("shards", "with another --shard-rows"),
        ("format", "with another --format"),
        ("vision", "with another vision encoder"),
        ("images", "with other --images"),
    ):
        _check_same(getattr(before, name), getattr(now, name), output, what)


def _check_same(before: object, now: object, output: Output, what: str) -> None:
    if before != now:
        raise OutputTaken(output.where, f"holds a run {what}; repeat its command, name a new folder, or --overwrite")


def _before(output: Output) -> Job | None:
    data = output.job()
    return None if data is None else Job.parse(data, output.where)


def _input_files(wanted: Wanted, output: Output) -> tuple[InputFile, ...]:
    files = list_files(wanted.input)
    for file in files:
        if PurePosixPath(file.path).is_relative_to(output.path):
            raise OutputTaken(output.where, "is where the input is; name another folder")
    if would_list(wanted.input, f"{output.path}/{part_name(0, wanted.format)}"):
        raise OutputTaken(output.where, "is within the input, which would hold its parts; name another folder")
    return files


def _versions(wanted: Wanted, registry: Registry, before: Job | None, output: Output) -> list[tuple[TaskRef, int]]:
    """Each task's version: the one it has now, or for a resumed run the one it had at the start."""
    if not wanted.tasks:
        raise WrongTask("--task", "name at least one task")
    refs = [TaskRef.parse(task) for task in wanted.tasks]
    if before is None:
        state = registry.state()
        return [(ref, state.resolve(ref)) for ref in refs]
    _check_same(before.registry, registry.id, output, "from another registry")
    _check_same([pinned.asked for pinned in before.tasks], [str(ref) for ref in refs], output, "with other tasks")
    return [(ref, pinned.version) for ref, pinned in zip(refs, before.tasks, strict=True)]


def _pinned(
    wanted: Wanted, versions: Sequence[tuple[TaskRef, int]], manifests: Sequence[Manifest]
) -> tuple[Pinned, ...]:
    keys = [(ref.task, version) for ref, version in versions]
    for key in keys:
        if keys.count(key) > 1:
            raise WrongTask(f"{key[0]}:{key[1]}", "is asked for twice; name it once")
    known = {field for manifest in manifests for field in manifest.spec.inputs}
    for name in wanted.renames:
        if name not in known:
            raise WrongTask("--rename", f"no task has a field {name!r}; there are {', '.join(sorted(known))}")
    tasks = [task for task, _ in keys]
    return tuple(
        Pinned(
            asked=str(ref),
            task=ref.task,
            version=version,
            name=ref.task if tasks.count(ref.task) == 1 else f"{ref.task}:{version}",
            columns={name: wanted.renames.get(name, name) for name in manifest.spec.inputs},
        )
        for (ref, version), manifest in zip(versions, manifests, strict=True)
    )


def _with_ids(
    wanted: Wanted, pinned: Sequence[Pinned], manifests: Sequence[Manifest], schema: pa.Schema
) -> tuple[Pinned, ...]:
    """The tasks with the columns of their images' ids, once the input's columns are known."""
    if wanted.images is None:
        return tuple(pinned)
    return tuple(
        task.model_copy(update={"columns": find_ids(manifest.spec, task.columns, schema, wanted.renames)})
        for task, manifest in zip(pinned, manifests, strict=True)
    )


def _check_source(wanted: Wanted, manifests: Sequence[Manifest]) -> None:
    """Raises WrongTask, ImageSourceError: --images that no task needs, or that are no images."""
    if wanted.images is None:
        return
    if not any(manifest.spec.images for manifest in manifests):
        raise WrongTask("--images", "no task reads images; leave it away")
    open_images(wanted.images)


def _check_columns(pinned: Sequence[Pinned], manifests: Sequence[Manifest], schema: pa.Schema) -> None:
    for task, manifest in zip(pinned, manifests, strict=True):
        for name, column in task.columns.items():
            if column not in schema.names:
                raise MissingColumn(task.name, name, column, schema.names)
        for added in fields_of(task.name, manifest.spec.kind):
            if added.name in schema.names:
                raise WrongTask(task.name, f"the input has a column {added.name!r} already; leave it out of the input")


def _check_writable(wanted: Wanted, schema: pa.Schema) -> None:
    """Raises UnreadableInput: Parquet cannot hold the columns, such as objects that are all empty."""
    if wanted.format != "parquet":
        return
    try:
        pq.write_table(schema.empty_table(), pa.BufferOutputStream())
    except pa.ArrowException as error:
        raise UnreadableInput(wanted.input, f"{' '.join(str(error).split())}; --format jsonl can") from None


def _backbone(wanted: Wanted, manifests: Sequence[Manifest]) -> tuple[str, str, str]:
    """(name, fingerprint, quantization) of the backbone that all tasks were trained on.

    Raises:
        BackboneError: it does not load.
        IncompatibleSide: a task was trained on another one, or with another tokenizer.
        WrongTask: the tasks were trained on different bits of it.
    """
    quantization = manifests[0].backbone.quantization
    for manifest in manifests:
        if manifest.backbone.quantization != quantization:
            bits = f"was trained on {manifest.backbone.quantization} bits, {manifests[0].task} on {quantization}"
            raise WrongTask(manifest.task, f"{bits}; give each a run of its own")
    backbone = load_backbone(wanted.backbone, quantize=quantization)
    tokenizer = load_tokenizer(wanted.backbone)
    for manifest in manifests:
        if manifest.backbone.fingerprint != backbone.fingerprint:
            wants = f"backbone {manifest.backbone.name} ({manifest.backbone.fingerprint})"
            has = f"{backbone.name} ({backbone.fingerprint})"
            remedy = "name the backbone that it was trained on"
            raise IncompatibleSide(manifest.task, wants, has, remedy)
        if manifest.tokenizer_fingerprint != tokenizer.fingerprint:
            raise IncompatibleSide(manifest.task, f"tokenizer {manifest.tokenizer_fingerprint}", tokenizer.fingerprint)
    return backbone.name, backbone.fingerprint, quantization
