"""An artifact: the files of one version, and the manifest that describes them. Reads and writes folders.

Knows digests and sizes and whether a side network's file is whole, not what fits: shapes and values are the loader's to
check.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from side_registry.documents import SCHEMA_VERSION, Document, explain, newer_schema, replacing
from side_registry.errors import ArtifactError, InvalidRow
from side_registry.golden import (
    MAX_EXAMPLES,
    MAX_REPLAY_TOKENS,
    GoldenExample,
    expectation_fault,
    replay_tokens,
    tolerance_fault,
)
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS, kinds_with
from side_registry.weights import frame_fault

MANIFEST = "manifest.json"
SIDE_NETWORK = "side_network.safetensors"

NO_TOKENIZER = "none"
"""Instead of a tokenizer's fingerprint: the backbone's folder had none, so this side network cannot read a text."""

MAX_MANIFEST_BYTES = 16 << 20
MAX_FILES = 64
MAX_NAME = 200
"""Characters of fingerprints, of a run's id and of the backbone's name: the log repeats them."""

THRESHOLD = 0.5
"""Of a label whose threshold was not fitted."""
TOLERANCE: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 0.1}

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Fingerprint = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME)]


class Blob(Document):
    """A file by its content."""

    sha256: Digest
    size: int = Field(ge=0)
    """Bytes."""


class BackboneRef(Document):
    """The backbone a side network reads; its name is for people, its fingerprint decides."""

    name: str = Field(max_length=MAX_NAME)
    fingerprint: Fingerprint
    quantization: str = Field(default="none", max_length=MAX_NAME)
    """Type of its matrices, int8 or int4; `none`: as published. For people: the fingerprint covers it too."""


class VisionRef(Document):
    """The vision encoder whose features a side network reads; its name is for people, its fingerprint decides."""

    name: str = Field(max_length=MAX_NAME)
    fingerprint: Fingerprint


class Calibration(Document):
    """How a classification's scores are tempered: the logits are divided by one number, so labels stay the same."""

    temperature: float = Field(ge=0.01, le=100)
    """Fitted on the validation rows; above 1 scores are less sure."""
    rows: int = Field(ge=1)
    """On which it was fitted."""
    nll: float
    """Mean negative log-likelihood of these rows' labels, in nats."""
    nll_before: float
    """The same without the temperature."""
    ece: float
    """Expected calibration error on these rows."""
    ece_before: float


class Manifest(Document):
    """All that is known of one version; `manifest.json` in its folder."""

    schema_version: int = SCHEMA_VERSION
    task: str
    spec: TaskSpec
    backbone: BackboneRef
    tokenizer_fingerprint: Fingerprint
    side: dict[str, Any]
    """The side network's configuration: reduction, layers, gate, head."""
    vision: VisionRef | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of a side network that reads images. None: it reads text alone, or images whose encoder nobody named."""
    metrics: dict[str, float] = Field(default_factory=dict)
    calibration: Calibration | None = Field(default=None, exclude_if=lambda value: value is None)
    """None: scores are the model's own, as in versions from before there was a calibration."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Where it came from: data_sha256, seed, recipe, code_version, time, run_id."""
    untrained: bool = Field(default=False, exclude_if=lambda value: not value)
    """No training has changed its weights: `sidecast init` made it. A trained run's manifest does not have it."""
    thresholds: dict[str, float] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Multilabel: the score from which a label is part of an answer, by label, 0 to 1; THRESHOLD for labels that it
    lacks. Manifests of other kinds do not have it."""
    examples: tuple[GoldenExample, ...] = Field(default=(), max_length=MAX_EXAMPLES)
    tolerance: dict[str, float] = Field(default_factory=lambda: dict(TOLERANCE))
    """How far an example's numbers may be off, by the backbone's dtype."""
    files: dict[str, Blob] = Field(default_factory=dict, max_length=MAX_FILES)

    @property
    def is_untrained(self) -> bool:
        """Whether no training has changed its weights. Runs of older programs say so in their provenance alone."""
        return self.untrained or self.provenance.get("made_by") == "init"

    @property
    def label_thresholds(self) -> tuple[float, ...]:
        """A threshold for each label, in the spec's order; none where the kind has no thresholds."""
        if not KINDS[self.spec.kind].has_thresholds:
            return ()
        return tuple(self.thresholds.get(label, THRESHOLD) for label in self.spec.labels)

    @property
    def run_id(self) -> str:
        """Id of the training run; empty when the provenance has none."""
        return str(self.provenance.get("run_id", ""))

    @property
    def temperature(self) -> float:
        """What a classification's logits are divided by; 1 where there is no calibration."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @model_validator(mode="after")
    def _check(self) -> Self:
        if fault := newer_schema(self.schema_version):
            raise ValueError(fault)
        if self.calibration is not None and self.spec.kind != "classification":
            raise ValueError(f"calibration is for a classification, task {self.task[:80]!r} is a {self.spec.kind}")
        if self.task != self.spec.name:
            raise ValueError(f"task {self.task[:80]!r} and spec.name {self.spec.name!r} must be the same")
        if len(self.run_id) > MAX_NAME:
            raise ValueError(f"provenance.run_id has {len(self.run_id)} characters, at most {MAX_NAME} are allowed")
        for name in self.files:
            if not FILE_NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"files: {name[:80]!r} is not a plain file name")
        if fault := tolerance_fault(self.tolerance):
            raise ValueError(f"tolerance.{fault}")
        if fault := self._threshold_fault():
            raise ValueError(f"thresholds: {fault}")
        for index, example in enumerate(self.examples):
            if fault := expectation_fault(self.spec, example.expected):
                raise ValueError(f"examples.{index}.expected: {fault}")
            if fault := self._image_fault(example):
                raise ValueError(f"examples.{index}.images: {fault}")
        return self

    def _threshold_fault(self) -> str | None:
        """Why the thresholds are not those of its task; None if they are."""
        if self.thresholds and not KINDS[self.spec.kind].has_thresholds:
            return f"are for {kinds_with('has_thresholds')}, task {self.task!r} is {self.spec.kind}"
        labels = set(self.spec.labels)
        for label, threshold in self.thresholds.items():
            if label not in labels:
                return f"{label[:80]!r} is none of the spec's labels"
            if not 0 <= threshold <= 1:
                return f"{label[:80]!r} must be within 0..1, got {threshold:g}"
        return None

    def _image_fault(self, example: GoldenExample) -> str | None:
        """Why an example's images are not those of its task; None if they are."""
        if set(example.images) != set(self.spec.images):
            return f"task {self.task!r} has the images {', '.join(self.spec.images) or 'none'}"
        unknown = next((name for name in example.images.values() if self.files and name not in self.files), None)
        return None if unknown is None else f"{unknown[:80]!r} is none of the artifact's files"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder whose files are those of its manifest, verified."""

    folder: Path
    manifest: Manifest
    manifest_bytes: bytes = field(repr=False)
    """As they are on disk: their digest identifies the artifact."""

    @property
    def manifest_sha256(self) -> str:
        """The digest of its manifest, which identifies the artifact."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    @property
    def side_network(self) -> Path:
        """Its safetensors file."""
        return self.folder / SIDE_NETWORK


def read_artifact(folder: str | Path) -> Artifact:
    """Read a run folder and verify every file the manifest names.

    Raises:
        ArtifactError: what is missing, unreadable or not what the manifest says.
    """
    folder = Path(folder).expanduser()
    data = _read_manifest(folder)
    manifest = parse_manifest(data, folder)
    need_side_network(manifest, folder)
    for name, blob in manifest.files.items():
        _verify(folder, name, blob)
    if fault := frame_fault(folder / SIDE_NETWORK):
        raise ArtifactError(folder, f"{SIDE_NETWORK} is no whole safetensors file: {fault}; make the run again")
    return Artifact(folder, manifest, data)


def write_manifest(folder: str | Path, manifest: Manifest, *, files: Iterable[str] = (SIDE_NETWORK,)) -> Manifest:
    """Complete the manifest with the digests of the folder's files and write it there, last of all.

    Raises:
        ArtifactError: a file is missing.
    """
    folder = Path(folder).expanduser()
    blobs = {name: _measure(folder, name) for name in files}
    complete = manifest.model_copy(update={"files": blobs})
    with replacing(folder / MANIFEST) as file:
        file.write(complete.to_json(indent=2))
    return complete


def with_provenance(artifact: Artifact, folder: str | Path, more: Mapping[str, Any]) -> Artifact:
    """Make an artifact in an empty folder whose manifest has more provenance; its files are links to the same files.

    Raises:
        ArtifactError: a file is missing.
    """
    folder = Path(folder)
    for name in artifact.manifest.files:
        (folder / name).symlink_to((artifact.folder / name).resolve())
    provenance = {**artifact.manifest.provenance, **more}
    write_manifest(
        folder, artifact.manifest.model_copy(update={"provenance": provenance}), files=artifact.manifest.files
    )
    return read_artifact(folder)


def parse_manifest(data: bytes, where: str | Path) -> Manifest:
    """A manifest from its bytes. Raises ArtifactError, which names `where`."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise ArtifactError(where, f"{MANIFEST}: {explain(error)}") from None


def check_publishable(manifest: Manifest, where: str | Path, *, allow_untrained: bool = False) -> None:
    """Check what a publisher should not put into a registry, although a server could read it.

    Raises:
        ArtifactError: no tokenizer, untrained weights, or golden examples that are no rows or too many tokens.
    """
    if manifest.tokenizer_fingerprint == NO_TOKENIZER:
        raise ArtifactError(where, "it was made without a tokenizer; make it again from a backbone folder that has one")
    if manifest.is_untrained and not allow_untrained:
        why = "it is untrained: sidecast init made it, and no training has changed its weights"
        raise ArtifactError(where, f"{why}; train it, or publish it with --allow-untrained (allow_untrained=True)")
    try:
        tokens = replay_tokens(manifest.spec, manifest.examples)
    except InvalidRow as error:
        raise ArtifactError(where, f"a golden example's {error}") from None
    if tokens > MAX_REPLAY_TOKENS:
        why = f"its golden examples may have {tokens:,} tokens, at most {MAX_REPLAY_TOKENS:,} are allowed"
        raise ArtifactError(where, f"{why}; publish it with fewer or shorter ones")


def need_side_network(manifest: Manifest, where: str | Path) -> None:
    """Check that a manifest names a side network. Raises ArtifactError, which names `where`."""
    if SIDE_NETWORK not in manifest.files:
        raise ArtifactError(where, f"{MANIFEST} does not name {SIDE_NETWORK}")


def _read_manifest(folder: Path) -> bytes:
    try:
        with (folder / MANIFEST).open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        why = (
            f"it has no {MANIFEST}, name the folder of a finished run" if folder.is_dir() else "there is no such folder"
        )
        raise ArtifactError(folder, why) from None
    except OSError as error:
        raise ArtifactError(folder, f"{MANIFEST}: {error.strerror}") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError(folder, f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    return data


def _measure(folder: Path, name: str) -> Blob:
    try:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Blob(sha256=digest, size=file.tell())
    except FileNotFoundError:
        raise ArtifactError(folder, f"{name} is missing") from None
    except OSError as error:
        raise ArtifactError(folder, f"{name}: {error.strerror}") from None


def _verify(folder: Path, name: str, blob: Blob) -> None:
    actual = _measure(folder, name)
    if actual.size != blob.size:
        raise ArtifactError(folder, f"{name} has {actual.size} bytes, {MANIFEST} says {blob.size}")
    if actual.sha256 != blob.sha256:
        raise ArtifactError(folder, f"{name} is not the file {MANIFEST} describes (its sha256 differs)")
