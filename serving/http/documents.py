"""Messages of the registry as JSON documents: every field by its name, numbers as numbers, times in ISO 8601."""

from typing import Any, NotRequired

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from typing_extensions import TypedDict

from protos import sidecast_pb2 as pb
from serving.engine import RequestTimes
from side_registry.manifest import Manifest


class ShareDocument(TypedDict):
    """A version's part of an alias's traffic."""

    version: int
    share: int
    """Hundredths of a per cent: 500 is 5 %."""


class BoundsDocument(TypedDict):
    """Bounds of the versions with shares."""

    error_rate: NotRequired[float]
    latency: NotRequired[float]
    disagreement: NotRequired[float]
    min_rows: int


class RouteDocument(TypedDict):
    """How an alias's traffic is split."""

    version: NotRequired[int]
    """The alias's main version, which gets the rest."""
    shares: list[ShareDocument]
    shadows: list[int]
    bounds: NotRequired[BoundsDocument]


class ChangeDocument(TypedDict):
    """Who changed the registry, and why."""

    author: str
    message: str


class ActionDocument(TypedDict):
    """One change of a commit."""

    verb: str
    """publish, set_alias, set_route, rollback, retire or delete_task."""
    task: str
    version: int
    """0: none."""
    alias: str
    route: NotRequired[RouteDocument]
    run_id: str


class Commit(TypedDict):
    """Changes that were made together."""

    generation: int
    time: NotRequired[str]
    change: NotRequired[ChangeDocument]
    actions: list[ActionDocument]


class ComparisonDocument(TypedDict):
    """One version of a route."""

    version: int
    answers: bool
    """It answers callers with a share, and not only beside them."""
    rows: int
    failed: int
    compared: int
    """Rows that both it and the alias's main version answered."""
    agreed: int
    drift: float
    latency_seconds: float
    cost_seconds: float
    dropped: int


class DisagreementDocument(TypedDict):
    """An input on which two versions differ."""

    time: NotRequired[str]
    version: int
    prompt: str
    expected: str
    found: str
    drift: float


class RolledBackDocument(TypedDict):
    """Why this server ended an alias's shares."""

    why: str
    generation: int
    time: NotRequired[str]
    route: NotRequired[RouteDocument]
    comparisons: list[ComparisonDocument]
    disagreements: list[DisagreementDocument]


class Comparisons(TypedDict):
    """How the versions of an alias's route compare on this server."""

    task: str
    alias: str
    version: int
    comparisons: list[ComparisonDocument]
    """The alias's main version first."""
    disagreements: list[DisagreementDocument]
    """Newest first."""
    since: int
    """Generation of the route's last change: everything here was seen since."""
    keeps_inputs: bool
    rolled_back: NotRequired[RolledBackDocument]


class BackboneDocument(TypedDict):
    """The backbone that a version reads."""

    name: str
    fingerprint: str
    quantization: str


class FileDocument(TypedDict):
    """A file of a version."""

    name: str
    sha256: str
    size: int


class VersionDetails(TypedDict):
    """One version: its scores and where it came from."""

    task: str
    version: int
    kind: str
    run_id: str
    published_at: str | None
    author: str
    message: str
    retired: bool
    resident: bool
    failure: str
    untrained: bool
    metric: str
    """That by which the task's versions are compared."""
    metrics: dict[str, float]
    """Scores on its validation rows."""
    thresholds: NotRequired[dict[str, float]]
    """Of a multilabel task: the score from which a label is part of an answer, by label."""
    calibration: dict[str, float | int] | None
    provenance: dict[str, Any]
    backbone: BackboneDocument
    tokenizer_fingerprint: str
    side: dict[str, Any]
    """The side network's configuration."""
    files: list[FileDocument]


class Timings(TypedDict):
    """Where the time of one request went. A stage on the device counts whole, also where other requests shared it."""

    total_s: float
    """From the parsed body to the last answer."""
    prepare_s: float
    """Text to tokens, and images to features."""
    queue_s: float
    """Until its first rows went to the device."""
    backbone_s: float
    side_s: float
    """All side networks that score, together: those of one shape are one computation."""
    decode_s: float
    decode_steps: int
    inputs: int
    """Distinct inputs of the backbone."""
    cached_inputs: int
    """Of these, those that the activation cache knew."""
    batch_rows: int
    """Rows that were computed together, those of other requests included."""


def describe_times(times: RequestTimes, total_s: float) -> Timings:
    """A request's times."""
    return Timings(
        total_s=total_s,
        prepare_s=times.prepare,
        queue_s=times.queue,
        backbone_s=times.backbone,
        side_s=times.side,
        decode_s=times.decode,
        decode_steps=times.steps,
        inputs=times.inputs,
        cached_inputs=times.cached_inputs,
        batch_rows=times.batch_rows,
    )


def describe(message: Message) -> dict[str, Any]:
    """A message as a document. What has no value that could be told from its absence is left out."""
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            document[field.name] = [_value(item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            document[field.name] = _value(value)
    return document


def _value(value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    return describe(value) if isinstance(value, Message) else value


def describe_details(version: pb.Version, manifest: Manifest) -> VersionDetails:
    """One version, without its golden examples: they are texts of its data."""
    backbone = manifest.backbone
    details = VersionDetails(
        task=manifest.task,
        version=version.version,
        kind=manifest.spec.kind,
        run_id=version.run_id,
        published_at=version.published_at.ToJsonString() if version.HasField("published_at") else None,
        author=version.author,
        message=version.message,
        retired=version.retired,
        resident=version.resident,
        failure=version.failure,
        untrained=version.untrained,
        metric=manifest.spec.metric,
        metrics=manifest.metrics,
        calibration=manifest.calibration.model_dump() if manifest.calibration else None,
        provenance=manifest.provenance,
        backbone=BackboneDocument(
            name=backbone.name, fingerprint=backbone.fingerprint, quantization=backbone.quantization
        ),
        tokenizer_fingerprint=manifest.tokenizer_fingerprint,
        side=manifest.side,
        files=[FileDocument(name=name, sha256=blob.sha256, size=blob.size) for name, blob in manifest.files.items()],
    )
    if manifest.label_thresholds:
        details["thresholds"] = dict(zip(manifest.spec.labels, manifest.label_thresholds, strict=True))
    return details
