"""Predictions of a side network for labelled rows, through the same code as a server's, and their scores."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ladder import (
    Answer,
    Answerer,
    Backbone,
    ClassAnswer,
    Row,
    SideNetwork,
    Tokenizer,
    ValueAnswer,
    answer,
    build_answerer,
    load_side,
)
from side_registry.manifest import Artifact
from side_registry.task import TaskSpec
from training.data import Example
from training.errors import RunError
from training.metrics import score

BATCH_TOKENS = 4096
"""Tokens of a batch, padding counted."""

Step = Callable[[int, int], None]
"""Told rows done and rows in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A side network ready to answer for a task."""

    spec: TaskSpec
    side: SideNetwork
    answerer: Answerer


def make_answerer(spec: TaskSpec, side: SideNetwork, tokenizer: Tokenizer, unit: float = 1.0) -> Answerer:
    return build_answerer(
        kind=spec.kind,
        labels=spec.labels,
        low=spec.low,
        high=spec.high,
        max_new_tokens=spec.max_new_tokens,
        head=side.config.head,
        tokenizer=tokenizer,
        unit=unit,
    )


def load_model(artifact: Artifact, backbone: Backbone, tokenizer: Tokenizer) -> Model:
    """The side network of a run folder or a downloaded version.

    Raises:
        RunError: it was trained on another backbone or tokenizer.
        CheckpointError: its weights do not fit or are damaged.
    """
    manifest = artifact.manifest
    if manifest.backbone.fingerprint != backbone.fingerprint:
        why = f"trained on {manifest.backbone.name}, another backbone than {backbone.name}; give that one"
        raise RunError(artifact.folder, why)
    if manifest.tokenizer_fingerprint != tokenizer.fingerprint:
        raise RunError(artifact.folder, f"trained with another tokenizer than {backbone.name} has; give that backbone")
    path = artifact.folder / "side_network.safetensors"
    side = load_side(path, backbone.config, device=backbone.device, dtype=backbone.dtype)
    return Model(spec=manifest.spec, side=side, answerer=make_answerer(manifest.spec, side, tokenizer))


def predict(
    model: Model, backbone: Backbone, tokenizer: Tokenizer, fields: Sequence[dict[str, str]], step: Step | None = None
) -> list[Answer]:
    """Answers in the rows' order.

    Raises:
        InvalidRow: a row does not fit the spec.
        NotFiniteError: the side network answered with NaN.
    """
    spec = model.spec
    encoded = tokenizer.encode_batch([spec.render(row) for row in fields], spec.max_source_tokens)
    answers: dict[int, Answer] = {}
    for places in length_batches([len(ids) for ids in encoded], BATCH_TOKENS):
        rows = [Row(ids=tuple(encoded[place]), side=model.side, answerer=model.answerer) for place in places]
        for place, outcome in zip(places, answer(backbone, rows), strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            answers[place] = outcome
        if step is not None:
            step(len(answers), len(encoded))
    return [answers[place] for place in range(len(encoded))]


def length_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Places sorted by length, in batches whose rows times longest row stay within `max_tokens` (one row at least)."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def answer_value(given: Answer) -> str | float:
    """What a metric takes: the label, the value or the text."""
    if isinstance(given, ClassAnswer):
        return given.label
    return given.value if isinstance(given, ValueAnswer) else given.text


def score_answers(spec: TaskSpec, answers: Sequence[Answer], examples: Sequence[Example]) -> dict[str, float]:
    """The spec's metric; the headline under the metric's own name."""
    predictions = [answer_value(given) for given in answers]
    return score(spec.metric, predictions, [example.target for example in examples], labels=spec.labels)
