"""Predictions of a side network for labelled rows, through the same code as a server's, and their scores."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ladder import (
    Answer,
    Answerer,
    Backbone,
    ClassAnswer,
    Generation,
    Images,
    LabelsAnswer,
    RelevanceAnswer,
    Row,
    SideNetwork,
    SpansAnswer,
    Tokenizer,
    ValueAnswer,
    VectorAnswer,
    answer,
    build_answerer,
    load_side,
    run_backbone,
)
from ladder.answering import ReadInputs, WindowedText
from ladder.errors import InputsError
from side_registry.manifest import NO_TOKENIZER, Artifact
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.batches import locate_pairs
from training.data import Example
from training.errors import RunError
from training.metrics import LabelScores, score_values
from training.metrics.calibration import Fitted, fit_temperature
from training.tagging import windows_of

BATCH_TOKENS = 4096
"""Tokens of a batch, padding counted."""

Step = Callable[[int, int], None]
"""Called with rows done and rows in all."""

ReadImages = Callable[[Sequence[Any]], Tensor]
"""Makes the features (images, tokens, width) of what rows hold as their images: ids in data files, else bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A side network ready to answer for a task."""

    spec: TaskSpec
    side: SideNetwork
    answerer: Answerer
    """Turns the side network's outputs into answers of the spec's kind."""


def make_answerer(
    spec: TaskSpec,
    side: SideNetwork,
    tokenizer: Tokenizer,
    unit: float = 1.0,
    temperature: float = 1.0,
    thresholds: Sequence[float] = (),
) -> Answerer:
    """The answerer of `spec`'s kind for the head that `side` has.

    Args:
        unit: of a regression's loss: the targets' standard deviation.
        temperature: of a classification's scores.
        thresholds: of the labels, as `Manifest.label_thresholds`.
    """
    return build_answerer(
        kind=spec.kind,
        labels=spec.labels,
        low=spec.low,
        high=spec.high,
        max_new_tokens=spec.max_new_tokens,
        head=side.config.head,
        tokenizer=tokenizer,
        unit=unit,
        temperature=temperature,
        generation=Generation(**spec.generation.settings),
        thresholds=thresholds,
    )


def load_model(artifact: Artifact, backbone: Backbone, tokenizer: Tokenizer) -> Model:
    """The side network of a run folder or a downloaded version.

    Raises:
        RunError: it was trained on another backbone or tokenizer, or reads images of which its task does not know.
        CheckpointError: its weights do not fit or are damaged.
    """
    manifest = artifact.manifest
    _check_backbone(artifact, backbone)
    if manifest.side.get("visual") is not None and not manifest.spec.images:
        raise RunError(
            artifact.folder, "it reads images, and its task has no images in its rows; only `trace` takes it"
        )
    if manifest.tokenizer_fingerprint == NO_TOKENIZER:
        why = "made with a backbone folder that had no tokenizer; make it again with one that has"
        raise RunError(artifact.folder, why)
    if manifest.tokenizer_fingerprint != tokenizer.fingerprint:
        raise RunError(artifact.folder, f"trained with another tokenizer than {backbone.name} has; give that backbone")
    side = load_side_of(artifact, backbone)
    answerer = make_answerer(
        manifest.spec, side, tokenizer, temperature=manifest.temperature, thresholds=manifest.label_thresholds
    )
    return Model(spec=manifest.spec, side=side, answerer=answerer)


def load_side_of(artifact: Artifact, backbone: Backbone, dtype: torch.dtype | None = None) -> SideNetwork:
    """The side network alone, which no tokenizer is needed for; in the backbone's dtype unless another is given.

    Raises:
        RunError: it was trained on another backbone.
        CheckpointError: its weights do not fit or are damaged.
    """
    _check_backbone(artifact, backbone)
    return load_side(artifact.side_network, backbone.config, device=backbone.device, dtype=dtype or backbone.dtype)


def _check_backbone(artifact: Artifact, backbone: Backbone) -> None:
    trained_on = artifact.manifest.backbone
    if trained_on.fingerprint != backbone.fingerprint:
        remedy = "give that one"
        if trained_on.quantization != backbone.quantization:
            remedy = f"load it with --quantize {trained_on.quantization}"
        why = f"trained on {trained_on.name}, another backbone than {backbone.name}; {remedy}"
        raise RunError(artifact.folder, why)


def check_vision(artifact: Artifact, fingerprint: str | None, name: str) -> None:
    """Check that a side network reads the features of this encoder.

    Args:
        fingerprint: the encoder's; None where nobody knows which encoder made the features.

    Raises:
        RunError: it was trained with another encoder.
    """
    vision = artifact.manifest.vision
    if vision is not None and fingerprint is not None and vision.fingerprint != fingerprint:
        why = f"trained with the vision encoder {vision.name}, and {name} is another, or has another layer or size"
        raise RunError(artifact.folder, f"{why}; give that one with --vision")


def predict(
    model: Model,
    backbone: Backbone,
    tokenizer: Tokenizer,
    fields: Sequence[Mapping[str, Any]],
    step: Step | None = None,
    read_images: ReadImages | None = None,
    most_windows: int | None = None,
    read_inputs: ReadInputs = run_backbone,
) -> list[Answer]:
    """As `predict_rows`, the answers alone."""
    return predict_rows(model, backbone, tokenizer, fields, step, read_images, most_windows, read_inputs)[0]


def predict_rows(
    model: Model,
    backbone: Backbone,
    tokenizer: Tokenizer,
    fields: Sequence[Mapping[str, Any]],
    step: Step | None = None,
    read_images: ReadImages | None = None,
    most_windows: int | None = None,
    read_inputs: ReadInputs = run_backbone,
) -> tuple[list[Answer], list[bool]]:
    """Answers in the rows' order; for each row, whether its text was longer than `max_source_tokens`, and so is cut.

    Texts whose words are tagged are read in windows, and are cut only where they are longer than all of them.

    Args:
        fields: rows, as `spec.render` takes them, and what `read_images` takes for each of the spec's images.
        step: called after each batch.
        read_images: for a task with images.
        most_windows: of one text; None: as many as a server reads.
        read_inputs: as `ladder.answer` takes it.

    Raises:
        InvalidRow: a row does not fit the spec.
        InputsError: a task with images, and nothing to read them with.
        NotFiniteError: the side network answered with NaN.
    """
    spec = model.spec
    if KINDS[spec.kind].has_spans:
        return _tag_rows(model, backbone, windows_of(spec, tokenizer, fields, most_windows), step, read_inputs)
    encoded, truncated = tokenizer.encode_cut([spec.render(row) for row in fields], spec.max_source_tokens)
    images = _RowImages(spec, fields, read_images, backbone.device)
    pairs = locate_pairs(spec, tokenizer, fields, encoded)
    answers: dict[int, Answer] = {}
    for indices in _batches(model, encoded):
        rows = [
            Row(
                ids=tuple(encoded[index]),
                side=model.side,
                answerer=model.answerer,
                images=images.names[index],
                pair=pairs[index],
            )
            for index in indices
        ]
        outcomes = answer(backbone, rows, encode_images=images.encode, read_inputs=read_inputs)
        for index, outcome in zip(indices, outcomes, strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            answers[index] = outcome
        if step is not None:
            step(len(answers), len(encoded))
    return [answers[index] for index in range(len(encoded))], truncated


def _tag_rows(
    model: Model, backbone: Backbone, texts: Sequence[WindowedText], step: Step | None, read_inputs: ReadInputs
) -> tuple[list[Answer], list[bool]]:
    """As `predict_rows`, for texts in windows."""
    windows = [(row, window) for row, text in enumerate(texts) for window in text.windows]
    outcomes: dict[int, Answer | Exception] = {}
    for indices in _batches(model, [window.ids for _, window in windows]):
        rows = [
            Row(ids=windows[index][1].ids, side=model.side, answerer=model.answerer, words=windows[index][1].words)
            for index in indices
        ]
        outcomes.update(zip(indices, answer(backbone, rows, read_inputs=read_inputs), strict=True))
        if step is not None:
            step(len(texts) * len(outcomes) // len(windows), len(texts))
    answers: list[Answer] = []
    ordered = iter(outcomes[index] for index in range(len(windows)))
    for text in texts:
        joined = text.join([next(ordered) for _ in text.windows])
        if isinstance(joined, Exception):
            raise joined
        answers.append(joined)
    return answers, [text.truncated for text in texts]


class _RowImages:
    """Names the images of rows, so that a batch reads each distinct one once."""

    def __init__(
        self, spec: TaskSpec, rows: Sequence[Mapping[str, Any]], read: ReadImages | None, device: torch.device
    ) -> None:
        if spec.images and read is None:
            raise InputsError(f"task {spec.name} reads images: give an encoder or features for them")
        self._read = read
        self._device = device
        self._values: dict[str, Any] = {}
        self.names = [tuple(self._name(row[field]) for field in spec.images) for row in rows]

    def encode(self, images: Sequence[tuple[str, str]]) -> Images:
        assert self._read is not None
        features = self._read([self._values[name] for _, name in images])
        return Images(features=features.to(self._device), rows=[(index,) for index in range(len(images))])

    def _name(self, value: str | bytes) -> str:
        name = hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value
        self._values[name] = value
        return name


def _batches(model: Model, encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of the rows of each batch. With images, equal texts go together: the backbone reads each once a batch."""
    visual = model.side.config.visual
    if visual is None:
        yield from length_batches([len(ids) for ids in encoded], BATCH_TOKENS)
        return
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), tuple(encoded[index])))
    tokens = visual.tokens * len(model.spec.images)
    for batch in length_batches([len(encoded[index]) + tokens for index in order], BATCH_TOKENS):
        yield [order[position] for position in batch]


def length_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices sorted by length, in batches whose rows times longest row stay within `max_tokens` (one row at least)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def span_records(outcome: SpansAnswer) -> list[dict[str, Any]]:
    """The spans, JSON-ready."""
    return [asdict(span) for span in outcome.spans]


def answer_value(outcome: Answer) -> Any:
    """An answer without its scores: the label, the value, the text or the vector; or the spans."""
    if isinstance(outcome, SpansAnswer):
        return span_records(outcome)
    if isinstance(outcome, LabelsAnswer):
        return LabelScores(outcome.labels, outcome.scores)
    if isinstance(outcome, RelevanceAnswer):
        return outcome.relevance
    if isinstance(outcome, ClassAnswer):
        return outcome.label
    if isinstance(outcome, VectorAnswer):
        return outcome.values
    return outcome.value if isinstance(outcome, ValueAnswer) else outcome.text


def confidences_of(answers: Sequence[Answer]) -> list[float] | None:
    """The probability of each answered label; None where answers have none."""
    scores = [outcome.score for outcome in answers if isinstance(outcome, ClassAnswer)]
    return scores if scores else None


def calibrate(spec: TaskSpec, answers: Sequence[Answer], examples: Sequence[Example]) -> Fitted | None:
    """A temperature for a classification's scores; None for another kind, or where none makes them likelier.

    Rows whose target is none of the labels are left out: no temperature can make it likelier.

    Args:
        answers: untempered ones.
    """
    rows = [
        (answer.scores, spec.labels.index(example.target))
        for answer, example in zip(answers, examples, strict=False)  # embeddings have more answers
        if isinstance(answer, ClassAnswer) and example.target in spec.labels
    ]
    if not rows:
        return None
    probabilities, targets = zip(*rows, strict=True)
    return fit_temperature(probabilities, targets)


def score_answers(spec: TaskSpec, answers: Sequence[Answer], examples: Sequence[Example]) -> dict[str, float]:
    """As `training.metrics.score_values`, for the answers to `rows_to_answer(spec, examples)`."""
    return score_values(spec, [answer_value(outcome) for outcome in answers], examples)
