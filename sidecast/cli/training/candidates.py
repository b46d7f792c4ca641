"""What is evaluated: a run folder, a published version or a running server, and how each answers rows."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from side_registry import KINDS, Registry, TaskRef, TaskSpec, read_artifact
from side_registry.manifest import Artifact
from sidecast.cli import options
from sidecast.cli.answers import answer_values
from sidecast.cli.app import UserError
from sidecast.cli.training.bars import Bars
from sidecast.cli.training.image_options import ImageArguments
from sidecast.cli.training.verdict import cache_warnings

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


@dataclass
class Backbones:
    """Loads backbones as the options say, each once."""

    device: str
    dtype: str
    quantize: str | None = None
    """None: as the side network was trained."""
    _loaded: dict[tuple[str, str], tuple[Any, Any]] = field(default_factory=dict)

    def load(self, source: str, trained: str) -> tuple[Any, Any]:
        """A backbone and its tokenizer.

        Args:
            trained: the quantization that the side network was trained with.
        """
        key = (source, self.quantize or trained)
        if key not in self._loaded:
            self._loaded[key] = options.load_backbone(source, self.device, self.dtype, key[1])
        return self._loaded[key]


def in_run(run: str, backbone: str | None, backbones: Backbones, task: str | None = None) -> Candidate:
    """A run folder.

    Args:
        backbone: a folder or hub id; None: where the run says that its backbone was.
        task: what it must be a run of; None: of any task.
    """
    from training.images import EncoderSource
    from training.run_folder import RunFolder

    artifact = read_artifact(run)
    if task not in (None, artifact.manifest.task):
        raise UserError(f"{run} is a run of task {artifact.manifest.task}, not of {task}")
    folder = RunFolder(run)
    vision = folder.vision_source()
    encoder_source = None if vision is None else EncoderSource(**vision)
    return _local(artifact, None, backbone or folder.backbone_source(), backbones, encoder_source)


def in_registry(
    task: str, url: str, backbone: str, backbones: Backbones, encoder_source: "EncoderSource | None" = None
) -> Candidate:
    """A published version: `sst2`, `sst2@canary` or `sst2:7`."""
    ref = TaskRef.parse(task)
    registry = Registry.open(url)
    version = registry.state().resolve(ref)
    with tempfile.TemporaryDirectory(prefix="sidecast-") as folder:
        artifact = registry.download(ref.task, version, Path(folder) / "version")
        return _local(artifact, version, backbone, backbones, encoder_source)


def _local(
    artifact: Artifact,
    version: int | None,
    backbone: str,
    backbones: Backbones,
    encoder_source: "EncoderSource | None" = None,
) -> Candidate:
    from training.evaluation import load_model, predict_rows

    loaded, tokenizer = backbones.load(backbone, artifact.manifest.backbone.quantization)
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


def on_server(task: str, address: str) -> Candidate:
    """What a running server answers; one version, also while the server swaps."""
    ref = TaskRef.parse(task)
    client = options.connect(address)
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


@dataclass(frozen=True)
class Answered:
    """A candidate's answers to labelled rows."""

    answers: list[dict[str, Any]]
    """As `answer_values` makes them."""
    truncated: list[bool]
    faults: list[str]
    """Warnings."""

    def values(self, spec: TaskSpec) -> list[Any]:
        """What metrics compare with the targets."""
        from training.metrics import LabelScores

        if KINDS[spec.kind].has_thresholds:
            return [LabelScores(answer["labels"], list(answer["scores"].values())) for answer in self.answers]
        column = KINDS[spec.kind].columns[0].name
        return [answer[column] for answer in self.answers]

    @property
    def confidences(self) -> list[float] | None:
        """The probability of each answered label; None where answers have none."""
        scores = [answer["score"] for answer in self.answers if "score" in answer]
        return scores or None


def encoder_of(candidate: Candidate, arguments: ImageArguments) -> "EncoderSource | None":
    """The encoder that the command line names, else that of the run."""
    return arguments.encoder_source or candidate.encoder_source


def check_images_given(candidate: Candidate, spec: TaskSpec, arguments: ImageArguments) -> None:
    """Check that a task with images has what reads them, and another one none."""
    arguments.check_used([spec])
    has_encoder = candidate.artifact is None or encoder_of(candidate, arguments) is not None
    arguments.check(spec, has_encoder=has_encoder)


def answers_of(
    candidate: Candidate,
    spec: TaskSpec,
    rows: Sequence[Mapping[str, str]],
    examples: Sequence["Example"],
    data: str,
    arguments: ImageArguments,
    bars: Progress,
) -> Answered:
    """Let a candidate answer rows.

    Args:
        spec: as the rows were read.
        rows: what is answered: those of `examples`, and for an embedding their targets too.
        data: the file of the examples, for messages.
    """
    from training.images import check_images

    faults: list[str] = []
    read_images = None
    sent: Rows = rows
    if spec.images:
        pictures = arguments.open_source()
        check_images(spec, data, examples, pictures)
        if candidate.artifact is None:
            sent = arguments.send_bytes(spec, rows, pictures)
        else:
            progress = Bars(bars, spec.name).images
            encoder = encoder_of(candidate, arguments)
            made = arguments.features_of(candidate.artifact, pictures, encoder, candidate.device, rows, progress)
            read_images = made.read
            faults = cache_warnings(spec, made.disk_fault)
    bar = bars.add_task(f"{spec.name}: answering", total=len(rows), note="")
    answers, truncated = candidate.answer(sent, lambda done, _: bars.update(bar, completed=done), read_images)
    return Answered(
        [answer_values(answer, candidate.spec.kind, candidate.spec.labels) for answer in answers], truncated, faults
    )


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
