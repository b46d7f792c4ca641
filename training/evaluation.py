"""Predictions of a side network for labelled rows, through the same code as a server's, and their scores."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ladder import (
    Answer,
    Answerer,
    Backbone,
    ClassAnswer,
    Generation,
    Row,
    SideNetwork,
    Tokenizer,
    ValueAnswer,
    VectorAnswer,
    answer,
    build_answerer,
    load_side,
)
from side_registry.manifest import NO_TOKENIZER, Artifact
from side_registry.task import TaskSpec
from training.data import Example
from training.errors import RunError
from training.metrics import score_values

BATCH_TOKENS = 4096
"""Tokens of a batch, padding counted."""

Step = Callable[[int, int], None]
"""Called with rows done and rows in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A side network ready to answer for a task."""

    spec: TaskSpec
    side: SideNetwork
    answerer: Answerer
    """Turns the side network's outputs into answers of the spec's kind."""


def make_answerer(spec: TaskSpec, side: SideNetwork, tokenizer: Tokenizer, unit: float = 1.0) -> Answerer:
    """The answerer of `spec`'s kind for the head that `side` has.

    Args:
        unit: of a regression's loss: the targets' standard deviation.
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
        generation=Generation(**spec.generation.settings),
    )


def load_model(artifact: Artifact, backbone: Backbone, tokenizer: Tokenizer) -> Model:
    """The side network of a run folder or a downloaded version.

    Raises:
        RunError: it was trained on another backbone or tokenizer, or reads images.
        CheckpointError: its weights do not fit or are damaged.
    """
    manifest = artifact.manifest
    _check_backbone(artifact, backbone)
    if manifest.side.get("visual") is not None:
        raise RunError(artifact.folder, "it reads images, which rows of text do not have; only `trace` takes it yet")
    if manifest.tokenizer_fingerprint == NO_TOKENIZER:
        why = "made with a backbone folder that had no tokenizer; make it again with one that has"
        raise RunError(artifact.folder, why)
    if manifest.tokenizer_fingerprint != tokenizer.fingerprint:
        raise RunError(artifact.folder, f"trained with another tokenizer than {backbone.name} has; give that backbone")
    side = load_side_of(artifact, backbone)
    return Model(spec=manifest.spec, side=side, answerer=make_answerer(manifest.spec, side, tokenizer))


def load_side_of(artifact: Artifact, backbone: Backbone) -> SideNetwork:
    """The side network alone, which no tokenizer is needed for.

    Raises:
        RunError: it was trained on another backbone.
        CheckpointError: its weights do not fit or are damaged.
    """
    _check_backbone(artifact, backbone)
    return load_side(artifact.side_network, backbone.config, device=backbone.device, dtype=backbone.dtype)


def _check_backbone(artifact: Artifact, backbone: Backbone) -> None:
    trained_on = artifact.manifest.backbone
    if trained_on.fingerprint != backbone.fingerprint:
        remedy = "give that one"
        if trained_on.quantization != backbone.quantization:
            remedy = f"load it with --quantize {trained_on.quantization}"
        why = f"trained on {trained_on.name}, another backbone than {backbone.name}; {remedy}"
        raise RunError(artifact.folder, why)


def predict(
    model: Model, backbone: Backbone, tokenizer: Tokenizer, fields: Sequence[dict[str, str]], step: Step | None = None
) -> list[Answer]:
    """As `predict_rows`, the answers alone."""
    return predict_rows(model, backbone, tokenizer, fields, step)[0]


def predict_rows(
    model: Model, backbone: Backbone, tokenizer: Tokenizer, fields: Sequence[dict[str, str]], step: Step | None = None
) -> tuple[list[Answer], list[bool]]:
    """Answers in the rows' order; for each row, whether its text was longer than `max_source_tokens`, and so is cut.

    Args:
        fields: rows, as `spec.render` takes them.
        step: called after each batch.

    Raises:
        InvalidRow: a row does not fit the spec.
        NotFiniteError: the side network answered with NaN.
    """
    spec = model.spec
    encoded, truncated = tokenizer.encode_cut([spec.render(row) for row in fields], spec.max_source_tokens)
    answers: dict[int, Answer] = {}
    for indices in length_batches([len(ids) for ids in encoded], BATCH_TOKENS):
        rows = [Row(ids=tuple(encoded[index]), side=model.side, answerer=model.answerer) for index in indices]
        for index, outcome in zip(indices, answer(backbone, rows), strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            answers[index] = outcome
        if step is not None:
            step(len(answers), len(encoded))
    return [answers[index] for index in range(len(encoded))], truncated


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


def answer_value(outcome: Answer) -> str | float | tuple[float, ...]:
    """An answer without its scores: the label, the value, the text or the vector."""
    if isinstance(outcome, ClassAnswer):
        return outcome.label
    if isinstance(outcome, VectorAnswer):
        return outcome.values
    return outcome.value if isinstance(outcome, ValueAnswer) else outcome.text


def score_answers(spec: TaskSpec, answers: Sequence[Answer], examples: Sequence[Example]) -> dict[str, float]:
    """As `training.metrics.score_values`, for the answers to `rows_to_answer(spec, examples)`."""
    return score_values(spec, [answer_value(outcome) for outcome in answers], examples)
