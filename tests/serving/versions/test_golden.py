"""Golden examples: what counts as a difference, and how the loader replays them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ladder import (
    Backbone,
    ClassAnswer,
    LabelsAnswer,
    SideNetwork,
    TextAnswer,
    Tokenizer,
    ValueAnswer,
    VectorAnswer,
    load_backbone,
)
from ladder.answers import Span, SpansAnswer
from ladder.backbone.model import Taps
from ladder.stacked.heads import StackedLinear
from ladder.stacked.network import StackedSide
from serving.config import BatchConfig, LoadConfig
from serving.engine import Engine, run_steps_aside
from serving.engine.activation_cache import layers_of
from serving.engine.rows import Deliver
from serving.errors import GoldenMismatch, LoadFailed, OutOfMemory, ReplayTooLong
from serving.versions import replay
from serving.versions.golden import difference, tolerance_for
from serving.versions.loader import Loader
from serving.versions.replay import Replayer
from side_registry import GoldenExample, Manifest, Registry
from tests.serving.kit import TEXTS, make_spec
from tests.serving.versions.kit import negate, refusal


def span(start: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "label": "PER", "score": 0.9, "text": "Ann"} | changes


def tagged(*spans: dict[str, Any]) -> SpansAnswer:
    return SpansAnswer(spans=tuple(Span(**one) for one in spans), outside=(0.1, 0.9))


@pytest.mark.parametrize(
    ("answered", "expected", "differs"),
    [
        (ClassAnswer(label="a", score=0.9, scores=(0.9, 0.1)), {"label": "a", "scores": [0.9, 0.1]}, False),
        (ClassAnswer(label="a", score=0.9, scores=(0.9, 0.1)), {"label": "a", "scores": [0.8, 0.2]}, True),
        (ClassAnswer(label="a", score=0.9, scores=(0.9, 0.1)), {"label": "b"}, True),
        (ClassAnswer(label="a", score=0.51, scores=(0.51, 0.49)), {"label": "b", "scores": [0.495, 0.505]}, False),
        (ClassAnswer(label="a", score=0.9, scores=(0.9, 0.1)), {"scores": [0.9, 0.05, 0.05]}, True),
        (ClassAnswer(label="a", score=0.9, scores=(0.9, 0.1)), {"scores": ["NaN", 0.1]}, True),
        (ValueAnswer(value=3.0), {"value": 3.01}, False),
        (ValueAnswer(value=3.0), {"value": 3.5}, True),
        (ValueAnswer(value=3.0), {"value": float("nan")}, True),
        (ValueAnswer(value=3.0), {"value": float("inf")}, True),
        (ValueAnswer(value=3.0), {"value": 10**400}, True),
        (ClassAnswer(label="a", score=0.9, scores=(0.9, 0.1)), {"score": 10**400}, True),
        (ClassAnswer(label="a", score=0.9, scores=(0.9, 0.1)), {"scores": [0.9, -(10**400)]}, True),
        (VectorAnswer(values=(0.6, 0.8)), {"embedding": [0.6, 10**400]}, True),
        (TextAnswer(text="x", tokens=(3,)), {"text": "x"}, False),
        (TextAnswer(text="x", tokens=(3,)), {"text": "y"}, True),
        (TextAnswer(text="x", tokens=(3,)), {"newer": "field"}, False),
        (VectorAnswer(values=(0.6, 0.8)), {"embedding": [0.61, 0.79]}, False),
        (VectorAnswer(values=(0.6, 0.8)), {"embedding": [0.62, 0.79]}, True),
        (VectorAnswer(values=(0.6, 0.8)), {"embedding": [0.6, 0.8, 0.0]}, True),
        (VectorAnswer(values=(0.6, 0.8)), {"embedding": [0.6, "0.8"]}, True),
        (VectorAnswer(values=(0.6, 0.8)), {"embedding": [0.6, float("nan")]}, True),
        (VectorAnswer(values=(0.6, 0.8)), {"newer": "field"}, False),
        (LabelsAnswer(labels=("a",), scores=(0.9, 0.4)), {"labels": ["a"], "scores": [0.89, 0.41]}, False),
        (LabelsAnswer(labels=("a",), scores=(0.51, 0.4)), {"labels": [], "scores": [0.495, 0.4]}, False),
        (LabelsAnswer(labels=("a",), scores=(0.9, 0.4)), {"labels": ["a"], "scores": [0.9, 0.5]}, True),
        (LabelsAnswer(labels=("a",), scores=(0.9, 0.4)), {"scores": [0.9]}, True),
        (tagged(span(0, 3)), {"outside": [0.1, 0.9], "spans": [span(0, 3)]}, False),
        (tagged(span(0, 3)), {"outside": [0.15, 0.9], "spans": [span(0, 3)]}, True),
        (tagged(span(0, 3)), {"outside": [0.1]}, True),
        (tagged(span(0, 3)), {"outside": [0.1, "0.9"]}, True),
        (tagged(), {"outside": [0.1, 0.9], "spans": [span(0, 3)]}, True),
        (tagged(), {"outside": [0.1, 0.9], "spans": [span(0, 3, score=0.51)]}, False),
        (tagged(span(0, 5)), {"outside": [0.1, 0.9], "spans": [span(0, 3)]}, False),
        (tagged(span(0, 3, label="LOC")), {"outside": [0.1, 0.9], "spans": [span(0, 3)]}, True),
        (tagged(span(0, 3, score=0.8)), {"outside": [0.1, 0.9], "spans": [span(0, 3)]}, True),
    ],
)
def test_what_counts_as_a_difference(answered, expected, differs: bool) -> None:
    assert (difference(answered, expected, 0.02, exact_text=True) is not None) == differs


def test_text_may_differ_where_numbers_are_coarse() -> None:
    assert difference(TextAnswer(text="x", tokens=(3,)), {"text": "y"}, 0.1, exact_text=False) is None


def test_the_coarser_dtype_sets_the_tolerance() -> None:
    known = {"float32": 1e-3, "bfloat16": 0.1}
    assert tolerance_for(known, ["float32"]) == 1e-3
    assert tolerance_for(known, ["float32", "bfloat16"]) == 0.1
    assert tolerance_for(known, ["float16"]) == 0.1


def test_golden_examples_with_other_answers_are_refused(publish, loader: Loader) -> None:
    publish(change=negate)
    error = refusal(loader, GoldenMismatch)
    assert "golden example 0" in str(error)


def test_the_golden_example_with_another_answer_is_named(publish, loader: Loader) -> None:
    def edit(manifest: Manifest) -> Manifest:
        first, second, *others = manifest.examples
        wrong = second.model_copy(update={"expected": {"scores": [0.0, 0.0]}})
        return manifest.model_copy(update={"examples": (first, wrong, *others)})

    publish(edit=edit)
    assert "golden example 1" in str(refusal(loader, GoldenMismatch))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each of the backbone's passes from now on."""
    seen: list[int] = []

    def counted(encode: Callable[..., Any]) -> Callable[..., Any]:
        def count(self: Backbone, ids: torch.Tensor, *how: Any) -> Any:
            seen.append(len(ids))
            return encode(self, ids, *how)

        return count

    monkeypatch.setattr(Backbone, "encode", counted(Backbone.encode))
    monkeypatch.setattr(Backbone, "encode_divided", counted(Backbone.encode_divided))
    return seen


@pytest.mark.parametrize("kind", ["classification", "text"])
def test_golden_examples_are_one_pass_of_the_backbone_and_none_for_the_next_versions(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer, passes: list[int], kind: str
) -> None:
    for seed in range(3):
        publish(make_spec(kind=kind, max_new_tokens=4) if kind == "text" else make_spec(kind=kind), seed=seed)
    loader = Loader(registry, backbone, tokenizer, LoadConfig())
    passes.clear()
    for version in (1, 2, 3):
        loader.load("sst2", version)
    assert passes == [len(TEXTS)]


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_single_wrong_pass_refuses_no_version(publish, loader: Loader, monkeypatch, value: float) -> None:
    publish()
    spoil(monkeypatch, value, times=1)
    assert loader.load("sst2", 1).version == 1


def test_a_cached_wrong_pass_refuses_no_later_version(publish, loader: Loader, monkeypatch) -> None:
    publish(make_spec(kind="text", max_new_tokens=1), edit=_trained_in_bfloat16)
    publish(seed=1)
    publish(seed=2)
    spoil(monkeypatch, -1.0, times=1)
    assert [loader.load("sst2", version).version for version in (1, 2, 3)] == [1, 2, 3]


def test_a_wrong_version_is_replayed_twice_and_no_more(publish, loader: Loader, passes: list[int]) -> None:
    publish(change=negate)
    passes.clear()
    refusal(loader, GoldenMismatch)
    assert passes == [len(TEXTS)] * 2


def spoil(monkeypatch: pytest.MonkeyPatch, factor: float, times: int) -> None:
    """What the backbone's next passes make, multiplied by `factor`."""
    left = iter(range(times))

    def spoilt(encode: Callable[..., Any]) -> Callable[..., Any]:
        def call(*how: Any) -> Any:
            made = encode(*how)
            for taps in ([made] if isinstance(made, Taps) else made) if next(left, None) is not None else ():
                for layer in layers_of(taps):
                    layer.mul_(factor)
            return made

        return call

    monkeypatch.setattr(Backbone, "encode", spoilt(Backbone.encode))
    monkeypatch.setattr(Backbone, "encode_divided", spoilt(Backbone.encode_divided))


@pytest.mark.parametrize("limit", [0, 20_000])
def test_the_cache_of_golden_examples_is_bounded(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer, limit: int
) -> None:
    loader, kept = Loader(registry, backbone, tokenizer, LoadConfig(replay_bytes=limit)), []
    for version in (1, 2, 3, 4):
        publish(make_spec(kind="text", max_new_tokens=1), edit=_asking(f"{version} and some more"))
        loader.load("sst2", version)
        kept.append(loader.replayer.cache.bytes)
    assert max(kept) <= limit
    assert bool(max(kept)) == bool(limit)


def test_no_memory_for_golden_examples_is_a_transient_failure(publish, loader: Loader, monkeypatch) -> None:
    publish()

    def step(engine: Engine, rows: Any, cancelled: Any, deliver: Deliver) -> None:
        deliver([(row, OutOfMemory(len(rows))) for row in rows])

    monkeypatch.setattr(Engine, "step", step)
    assert refusal(loader, LoadFailed).transient


def test_a_version_that_raises_or_answers_nan_is_refused(publish, loader: Loader, monkeypatch) -> None:
    publish(change=lambda side: side.upsample.weight.mul_(1e38))
    assert "golden example 0: " in str(refusal(loader, GoldenMismatch))
    monkeypatch.setattr("ladder.answering.mixed_batch.StackedBatch", lambda *_: 1 / 0)
    error = str(refusal(loader, GoldenMismatch))
    assert "golden example 0: " in error
    assert "division by zero" in error


def test_golden_examples_are_not_replayed_when_told_not_to(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    publish(change=negate)
    loader = Loader(registry, backbone, tokenizer, LoadConfig(replay_examples=False))
    assert loader.load("sst2", 1).version == 1


def test_a_float32_golden_holds_on_a_bfloat16_server(
    publish, registry: Registry, tokenizer: Tokenizer, tiny_t5
) -> None:
    publish(make_spec(), head="linear")
    backbone = load_backbone(tiny_t5, dtype="bfloat16")
    resident = Loader(registry, backbone, tokenizer, LoadConfig()).load("sst2", 1)
    assert isinstance(resident.side, StackedSide)
    assert isinstance(resident.side.head, StackedLinear)
    assert resident.side.chunk.rows.dtype == torch.bfloat16
    assert resident.side.head.weight.dtype == torch.float32


def test_a_float32_embedding_holds_on_a_bfloat16_server(publish, registry: Registry, tokenizer: Tokenizer, tiny_t5):
    publish(make_spec(kind="embedding", dimensions=16))
    backbone = load_backbone(tiny_t5, dtype="bfloat16")
    assert Loader(registry, backbone, tokenizer, LoadConfig()).load("sst2", 1).version == 1


def test_another_embedding_than_the_golden_one_is_refused(publish, loader: Loader) -> None:
    publish(make_spec(kind="embedding", dimensions=2000), change=_negate_head)
    assert "an embedding 2 away (tolerance 0.001)" in str(refusal(loader, GoldenMismatch))


def test_other_entities_than_the_golden_ones_are_refused(publish, loader: Loader) -> None:
    publish(make_spec(kind="token_classification"), change=_negate_head)
    assert "outside of word 0" in str(refusal(loader, GoldenMismatch))


def _negate_head(side: SideNetwork) -> None:
    assert isinstance(side.head, torch.nn.Linear)
    side.head.weight.mul_(-1)
    side.head.bias.mul_(-1)


def _asking(text: str) -> Callable[[Manifest], Manifest]:
    """Of a golden example that asks about something else."""
    example = GoldenExample(fields={"sentence": text}, expected={"text": "anything"})
    return lambda manifest: _trained_in_bfloat16(manifest.model_copy(update={"examples": (example,)}))


def _trained_in_bfloat16(manifest: Manifest) -> Manifest:
    """Of texts from coarse numbers, which are not compared."""
    return manifest.model_copy(update={"provenance": {"dtype": "bfloat16"}})


def _long(count: int) -> Callable[[Manifest], Manifest]:
    """With `count` golden examples of many lengths."""

    def edit(manifest: Manifest) -> Manifest:
        example = manifest.examples[0]
        rows = [{"sentence": " ".join(["word"] * (1 + 7 * number % 30))} for number in range(count)]
        return manifest.model_copy(
            update={"examples": tuple(example.model_copy(update={"fields": row}) for row in rows)}
        )

    return lambda manifest: _trained_in_bfloat16(edit(manifest))


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and longest row of each batch that an engine gets from now on."""
    seen: list[tuple[int, int]] = []
    whole = Engine.step

    def step(engine: Engine, rows: Any, cancelled: Any, deliver: Deliver) -> bool:
        if rows:
            seen.append((len(rows), max(row.tokens for row in rows)))
        return whole(engine, rows, cancelled, deliver)

    monkeypatch.setattr(Engine, "step", step)
    return seen


def test_many_golden_examples_are_batches_within_the_limits(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer, shapes: list[tuple[int, int]]
) -> None:
    publish(make_spec(kind="text", max_new_tokens=2), edit=_long(40))
    batch = BatchConfig(max_batch_tokens=100, max_batch_rows=8)
    Loader(registry, backbone, tokenizer, LoadConfig(), batch=batch).load("sst2", 1)
    assert sum(rows for rows, _ in shapes) == 40
    assert all(rows <= 8 for rows, _ in shapes)
    assert all(rows * longest <= 100 or rows == 1 for rows, longest in shapes)
    assert max(rows for rows, _ in shapes) > 1


def test_batches_of_golden_examples_are_small_where_those_of_requests_are_large(
    publish, loader: Loader, shapes: list[tuple[int, int]]
) -> None:
    publish(make_spec(kind="text", max_new_tokens=2), edit=_long(40))
    loader.load("sst2", 1)
    assert sum(rows for rows, _ in shapes) == 40
    assert len(shapes) > 1
    assert all(rows * longest <= replay.BATCH_TOKENS for rows, longest in shapes)


def test_more_tokens_of_golden_examples_than_the_limit_are_refused_before_a_pass(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer, shapes: list[tuple[int, int]]
) -> None:
    publish(make_spec(kind="text", max_new_tokens=50), edit=_long(40))
    error = refusal(Loader(registry, backbone, tokenizer, LoadConfig(replay_tokens=2000)), ReplayTooLong)
    assert "the limit is 2,000 (replay_tokens)" in str(error)
    assert not error.transient
    assert shapes == []


def test_a_replay_that_takes_too_long_is_given_up_and_tried_again_later(
    publish, loader: Loader, registry: Registry, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    publish(make_spec(kind="text", max_new_tokens=8), edit=_long(3))
    ticks = iter(range(0, 10**6, 10))  # each step of the engine takes 10 s
    loader.replayer = Replayer(backbone, tokenizer, LoadConfig(), BatchConfig(), lambda: next(ticks))
    error = refusal(loader, ReplayTooLong)
    assert "longer than 30 s" in str(error)
    assert error.transient


def test_a_long_replay_pauses_between_turns_and_others_may_go_first(
    publish, loader: Loader, registry: Registry, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    publish(make_spec(kind="text", max_new_tokens=8))
    publish(make_spec(kind="text", max_new_tokens=8), seed=1)
    ticks = iter(range(10**6))  # each step of the engine takes 1 s
    loader.replayer = Replayer(backbone, tokenizer, LoadConfig(), BatchConfig(), lambda: next(ticks))
    slow = run_steps_aside(loader.replay(loader.fetch("sst2", 1)))  # each turn on another thread, as the server does
    next(slow)
    assert loader.load("sst2", 2).version == 2
    assert list(slow)


def test_other_loads_may_go_before_the_second_replay_of_a_wrong_version(
    publish, loader: Loader, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    publish(change=negate)
    ticks = iter(range(10**6))  # each step takes 1 s
    loader.replayer = Replayer(backbone, tokenizer, LoadConfig(), BatchConfig(), lambda: next(ticks))
    turns = loader.replay(loader.fetch("sst2", 1))
    next(turns)
    with pytest.raises(GoldenMismatch):
        list(turns)
