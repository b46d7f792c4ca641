"""Makes task specs, random side networks, run folders to publish, and residents for serving's tests."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from ladder import (
    Backbone,
    ClassAnswer,
    Generation,
    LabelsAnswer,
    RelevanceAnswer,
    Row,
    SideConfig,
    SideNetwork,
    SpansAnswer,
    TextAnswer,
    Tokenizer,
    ValueAnswer,
    VectorAnswer,
    answer,
    build_answerer,
)
from ladder.answering import Framed, Words, split_texts
from ladder.side.checkpoint import save_side
from ladder.stacked.bank import SideBank
from serving.engine import Piece, Resident
from serving.pipeline import Generated, InputRow, Prediction, PredictRequest, PredictService, RequestOptions
from side_registry import SIDE_NETWORK, BackboneRef, GoldenExample, Manifest, TaskRef, TaskSpec, write_manifest
from side_registry.specs.task_kinds import KINDS

QUERY = "films"
"""The other field of tasks that have one, in golden examples."""
TEXTS = ("a gripping film", "dull", "it is neither good nor bad, and far too long for what it has to say")


def make_spec(name: str = "sst2", kind: str = "classification", **changes: Any) -> TaskSpec:
    """A task of one field, `sentence`; `changes` are further fields of the spec."""
    values: dict[str, Any] = {"name": name, "kind": kind, "template": "{sentence}"}
    if KINDS[values["kind"]].has_labels:
        values["labels"] = ("negative", "positive")
    if kind == "token_classification":
        values["labels"] = ("PER", "LOC")
    if KINDS[values["kind"]].ranks:
        values["template"] = "{query} | {sentence}"
    return TaskSpec(**values | changes)


def make_side(backbone: Backbone, spec: TaskSpec, seed: int = 0, head: str = "text", **shape: Any) -> SideNetwork:
    """A random side network, far enough from zero that two of them answer differently."""
    outputs = spec.outputs if head != "text" else 0
    config = SideConfig(reduction=4, head=head, outputs=outputs, **shape)  # type: ignore[arg-type]
    side = SideNetwork(config, backbone.config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return side.eval().requires_grad_(False)


def head_of(spec: TaskSpec) -> str:
    """The simplest head that can answer the task."""
    return "text" if "text" in KINDS[spec.kind].heads else "linear"


def make_resident(
    backbone: Backbone,
    tokenizer: Tokenizer,
    spec: TaskSpec,
    version: int = 1,
    seed: int = 0,
    head: str | None = None,
    bank: SideBank | None = None,
    **shape: Any,
) -> Resident:
    """A loaded version of a task. Its side network is a module, or a slot of `bank` if there is one."""
    side = make_side(backbone, spec, seed, head or head_of(spec), **shape)
    answerer = build_answerer(
        kind=spec.kind,
        labels=spec.labels,
        low=spec.low,
        high=spec.high,
        max_new_tokens=spec.max_new_tokens,
        head=side.config.head,
        tokenizer=tokenizer,
        generation=Generation(**spec.generation.settings),
    )
    manifest = make_manifest(backbone, tokenizer, spec, side)
    return Resident(
        task=spec.name,
        version=version,
        spec=spec,
        side=bank.add(side) if bank else side,
        answerer=answerer,
        manifest=manifest,
        bytes=1,
    )


def make_manifest(backbone: Backbone, tokenizer: Tokenizer, spec: TaskSpec, side: SideNetwork) -> Manifest:
    return Manifest(
        task=spec.name,
        spec=spec,
        backbone=BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint, quantization=backbone.quantization),
        tokenizer_fingerprint=tokenizer.fingerprint,
        side=side.config.to_dict(),
    )


def make_run(
    folder: Path,
    backbone: Backbone,
    tokenizer: Tokenizer,
    spec: TaskSpec,
    seed: int = 0,
    head: str | None = None,
    change: Callable[[SideNetwork], None] | None = None,
    edit: Callable[[Manifest], Manifest] | None = None,
    **shape: Any,
) -> Path:
    """Write a run folder with golden examples, ready to publish.

    Args:
        change: edits the weights after the golden examples are answered, which makes the run a wrong one.
        edit: returns the manifest to write.
        shape: settings of the side network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resident = make_resident(backbone, tokenizer, spec, seed=seed, head=head, **shape)
    examples = [golden(backbone, tokenizer, resident, text) for text in TEXTS]
    assert isinstance(resident.side, SideNetwork)
    if change:
        with torch.no_grad():
            change(resident.side)
    save_side(folder / SIDE_NETWORK, resident.side)
    manifest = resident.manifest.model_copy(update={"examples": tuple(examples), "provenance": {"seed": seed}})
    write_manifest(folder, edit(manifest) if edit else manifest)
    return folder


def golden(backbone: Backbone, tokenizer: Tokenizer, resident: Resident, text: str) -> GoldenExample:
    """The resident's answer to one text, as a golden example."""
    words = words_of(tokenizer, text) if KINDS[resident.spec.kind].has_spans else None
    fields = {"sentence": text}
    prompt = text
    if KINDS[resident.spec.kind].ranks:
        fields["query"] = QUERY
        prompt = resident.spec.render(fields)
    row = Row(ids=ids_of(tokenizer, prompt), side=resident.side, answerer=resident.answerer, words=words)
    [outcome] = answer(backbone, [row])
    match outcome:
        case ClassAnswer():
            expected: dict[str, Any] = {"label": outcome.label, "scores": list(outcome.scores)}
        case VectorAnswer():
            expected = {"embedding": list(outcome.values)}
        case LabelsAnswer():
            expected = {"labels": list(outcome.labels), "scores": list(outcome.scores)}
        case SpansAnswer():
            expected = {"spans": [asdict(span) for span in outcome.spans], "outside": list(outcome.outside)}
        case ValueAnswer():
            expected = {"value": outcome.value}
        case RelevanceAnswer():
            expected = {"relevance": outcome.relevance}
        case TextAnswer():
            expected = {"text": outcome.text}
        case Exception():
            raise outcome
    return GoldenExample(fields=fields, expected=expected)


def ids_of(tokenizer: Tokenizer, text: str, limit: int = 128) -> tuple[int, ...]:
    """Token ids of a prompt, at most `limit`."""
    return tuple(tokenizer.encode(text, limit))


def words_of(tokenizer: Tokenizer, text: str, limit: int = 128) -> Words:
    """The words of a text that is a whole prompt of at most `limit` tokens."""
    [split] = split_texts(tokenizer, [Framed("", text, "")], limit)
    [window] = split.windows
    return window.words


def empty_resident(task: str, version: int = 1, spec: TaskSpec | None = None) -> Resident:
    """A resident without weights, for tests that never compute."""
    nothing = cast(Any, None)
    return Resident(
        task=task,
        version=version,
        spec=spec or make_spec(task),
        side=cast(Any, SimpleNamespace(config=SideConfig())),
        answerer=nothing,
        manifest=nothing,
        bytes=10,
    )


async def predict(
    service: PredictService,
    task: str,
    rows: Sequence[InputRow],
    *,
    version: int | None = None,
    alias: str | None = None,
    **options: Any,
) -> Prediction:
    """Resolve one task and answer its rows. `options` are those of RequestOptions."""
    request_options = RequestOptions(**options)
    target = service.resolve(TaskRef(task, alias, version), request_options)
    return await service.predict(PredictRequest(targets=(target,), rows=rows, options=request_options))


async def predict_tasks(
    service: PredictService, refs: Sequence[TaskRef], rows: Sequence[InputRow], **options: Any
) -> list[Any]:
    """Resolve many tasks and answer the same rows for each: a prediction, or the task's error."""
    request_options = RequestOptions(**options)
    request = PredictRequest(targets=service.resolve_tasks(refs, request_options), rows=rows, options=request_options)
    return await service.predict_tasks(request)


async def stream(
    service: PredictService, task: str, row: InputRow, **options: Any
) -> AsyncGenerator[Piece | Generated, None]:
    """Resolve a text task, and stream the text of one row."""
    request_options = RequestOptions(**options)
    request = PredictRequest(
        targets=(service.resolve(TaskRef(task), request_options),), rows=[row], options=request_options
    )
    async with aclosing(service.stream(request)) as events:
        async for event in events:
            yield event


def with_spec(resident: Resident, **changes: Any) -> Resident:
    """The same resident with other fields in its spec."""
    return replace(resident, spec=resident.spec.model_copy(update=changes))
