"""The loader against a real registry: what it makes, and everything it refuses, each with its typed reason."""

import gc
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ladder import (
    Backbone,
    ClassAnswer,
    Row,
    SideNetwork,
    TextAnswer,
    Tokenizer,
    ValueAnswer,
    VectorAnswer,
    answer,
    load_backbone,
)
from ladder.backbone.model import Taps
from ladder.stacked.heads import StackedLinear
from ladder.stacked.network import StackedSide
from serving.config import LoadConfig
from serving.engine.activation_cache import layers_of
from serving.errors import (
    CorruptSide,
    GoldenMismatch,
    IncompatibleSide,
    LoadError,
    LoadFailed,
    OutOfMemory,
    SideTooLarge,
)
from serving.versions.golden import difference, tolerance_for
from serving.versions.loader import Loader
from side_registry import SIDE_NETWORK, BackboneRef, GoldenExample, Manifest, Registry, StoreFailed
from tests.serving.kit import TEXTS, ids_of, make_run, make_spec


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry", create=True)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder for temporary files, which must be empty again after each test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def publish(registry: Registry, backbone: Backbone, tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., str]:
    """Publish a random side network; returns the digest of its weights."""

    def make(spec=None, **how: Any) -> str:
        run = make_run(tmp_path / "run", backbone, tokenizer, spec or make_spec(), **how)
        task = registry.publish(run).task
        version = registry.state().task(task).last_version
        return registry.manifest(task, version).files[SIDE_NETWORK].sha256

    return make


@pytest.fixture
def loader(registry: Registry, backbone: Backbone, tokenizer: Tokenizer) -> Loader:
    return Loader(registry, backbone, tokenizer, LoadConfig())


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("classification", "text"),
        ("classification", "linear"),
        ("regression", "linear"),
        ("regression", "mlp"),
        ("text", "text"),
        ("embedding", "linear"),
        ("embedding", "mlp"),
    ],
)
def test_a_published_version_loads_and_answers_as_where_it_was_made(
    publish, loader: Loader, backbone: Backbone, tokenizer: Tokenizer, kind: str, head: str
) -> None:
    publish(make_spec(kind=kind, max_new_tokens=4) if kind == "text" else make_spec(kind=kind), head=head)
    resident = loader.load("sst2", 1)
    assert resident.key == ("sst2", 1)
    assert isinstance(resident.side, StackedSide)
    assert resident.bytes == resident.side.bytes >= loader.bank.bytes > 0
    row = Row(ids=ids_of(tokenizer, "dull"), side=resident.side, answerer=resident.answerer)
    [found] = answer(backbone, [row])
    assert not isinstance(found, Exception)
    assert difference(found, resident.manifest.examples[1].expected, 1e-5, exact_text=True) is None


def test_tidying_gives_back_what_gone_versions_left_and_keeps_the_others(
    publish, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed: list[str] = []
    monkeypatch.setattr("serving.versions.loader.trim_heaps", lambda: trimmed.append("heaps"))
    publish()
    kept, gone = loader.load("sst2", 1), loader.load("sst2", 1)
    assert isinstance(kept.side, StackedSide)
    assert isinstance(gone.side, StackedSide)
    rows, slots = kept.side.chunk.rows, (kept.side.slot, gone.side.slot)
    before, filled = rows[slots[0]].clone(), rows[slots[1]].count_nonzero()
    del gone
    loader.tidy()
    assert trimmed == ["heaps"]
    assert torch.equal(rows[slots[0]], before)
    assert loader.bank.trim() == 0  # nothing is left to be given back
    assert sys.platform != "linux" or rows[slots[1]].count_nonzero() < filled / 2


def refusal(loader: Loader, kind: type[LoadError]) -> LoadError:
    with pytest.raises(kind) as caught:
        loader.load("sst2", 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return caught.value


@pytest.mark.parametrize("damage", ["truncated", "flipped", "longer", "missing"])
def test_damaged_bytes_are_refused_and_worth_another_try(
    publish, loader: Loader, registry: Registry, damage: str
) -> None:
    blob = Path(registry.url) / "blobs" / "sha256" / publish()
    data = bytearray(blob.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    changed = {"truncated": data[:-100], "longer": data + b"more", "flipped": data}
    blob.unlink() if damage == "missing" else blob.write_bytes(bytes(changed[damage]))
    error = refusal(loader, CorruptSide)
    assert error.transient
    assert blob.name in str(error)


def test_another_backbone_is_refused_by_name(publish, loader: Loader) -> None:
    def edit(manifest: Manifest) -> Manifest:
        return manifest.model_copy(update={"backbone": BackboneRef(name="t5-other", fingerprint="sha256:0123")})

    publish(edit=edit)
    error = refusal(loader, IncompatibleSide)
    assert "t5-other" in str(error)
    assert "retrain" in str(error)


def test_another_tokenizer_is_refused(publish, loader: Loader) -> None:
    publish(edit=lambda manifest: manifest.model_copy(update={"tokenizer_fingerprint": "sha256:4567"}))
    assert "sha256:4567" in str(refusal(loader, IncompatibleSide))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(publish, loader: Loader, value: float) -> None:
    def change(side: SideNetwork) -> None:
        side.upsample.weight[0, 0] = value

    publish(change=change)
    assert "finite" in str(refusal(loader, CorruptSide))


def test_golden_examples_that_come_out_otherwise_are_refused(publish, loader: Loader) -> None:
    publish(change=_negate)
    error = refusal(loader, GoldenMismatch)
    assert "golden example 0" in str(error)


def test_the_golden_example_that_comes_out_otherwise_is_named(publish, loader: Loader) -> None:
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
def test_a_pass_that_went_wrong_once_refuses_nothing(publish, loader: Loader, monkeypatch, value: float) -> None:
    publish()
    spoil(monkeypatch, value, times=1)
    assert loader.load("sst2", 1).version == 1


def test_a_wrong_pass_that_was_kept_refuses_no_later_version(publish, loader: Loader, monkeypatch) -> None:
    publish(edit=_expecting_nothing)
    publish(seed=1)
    publish(seed=2)
    spoil(monkeypatch, -1.0, times=1)
    assert [loader.load("sst2", version).version for version in (1, 2, 3)] == [1, 2, 3]


def test_a_wrong_version_is_replayed_twice_and_no_more(publish, loader: Loader, passes: list[int]) -> None:
    publish(change=_negate)
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
def test_what_is_kept_of_golden_examples_is_bounded(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer, limit: int
) -> None:
    loader, kept = Loader(registry, backbone, tokenizer, LoadConfig(replay_bytes=limit)), []
    for version in (1, 2, 3, 4):
        publish(edit=_asking(f"{version} and some more"))
        loader.load("sst2", version)
        kept.append(loader.engine.cache.bytes)
    assert max(kept) <= limit
    assert bool(max(kept)) == bool(limit)


def test_a_device_without_memory_for_golden_examples_is_worth_another_try(publish, loader: Loader, monkeypatch) -> None:
    publish()
    monkeypatch.setattr(loader.engine, "predict", lambda rows: [OutOfMemory(len(rows)) for _ in rows])
    assert refusal(loader, LoadFailed).transient


def test_a_version_that_raises_or_says_what_is_no_number_is_refused(publish, loader: Loader, monkeypatch) -> None:
    publish(change=lambda side: side.upsample.weight.mul_(1e38))
    assert "golden example 0: " in str(refusal(loader, GoldenMismatch))
    monkeypatch.setattr("ladder.answering.mixed_batch.StackedBatch", lambda *_: 1 / 0)
    error = str(refusal(loader, GoldenMismatch))
    assert "golden example 0: " in error
    assert "division by zero" in error


def test_golden_examples_are_not_replayed_when_told_not_to(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    publish(change=_negate)
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


def test_what_cannot_be_stacked_is_served_as_a_module(publish, registry: Registry, tokenizer: Tokenizer, tiny_t5):
    publish(merge_last=True)
    backbone = load_backbone(tiny_t5, dtype="bfloat16")
    loader = Loader(registry, backbone, tokenizer, LoadConfig())
    side = loader.load("sst2", 1).side
    assert isinstance(side, SideNetwork)
    assert {tensor.dtype for tensor in side.state_dict().values()} == {torch.bfloat16}
    assert loader.bank.slots == 0


def test_an_evicted_version_frees_its_slot_when_the_last_batch_lets_go(publish, loader: Loader) -> None:
    publish()
    pooled = {"sst2": loader.load("sst2", 1)}
    in_flight = pooled["sst2"]
    pooled["sst2"] = loader.load("sst2", 1)
    assert loader.bank.slots == 2
    del in_flight
    assert loader.bank.slots == 1
    pooled.clear()
    assert (loader.bank.slots, loader.bank.bytes) == (0, 0)


def test_a_refused_version_leaves_no_slot_taken(publish, loader: Loader) -> None:
    publish(change=_negate)
    refusal(loader, GoldenMismatch)
    gc.collect()  # the error's traceback holds what it was raised over
    assert loader.bank.slots == 0


def test_a_float32_embedding_holds_on_a_bfloat16_server(publish, registry: Registry, tokenizer: Tokenizer, tiny_t5):
    publish(make_spec(kind="embedding", dimensions=16))
    backbone = load_backbone(tiny_t5, dtype="bfloat16")
    assert Loader(registry, backbone, tokenizer, LoadConfig()).load("sst2", 1).version == 1


def test_a_side_network_over_the_size_limit_is_not_even_fetched(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    monkeypatch.setattr(registry, "download", lambda *_: pytest.fail("fetched"))
    error = refusal(Loader(registry, backbone, tokenizer, LoadConfig(max_side_bytes=1000)), SideTooLarge)
    assert "1,000" in str(error)


def test_a_checkpoint_of_another_shape_than_the_manifest_says_is_refused(publish, loader: Loader) -> None:
    publish(edit=lambda manifest: manifest.model_copy(update={"side": manifest.side | {"encoder_layers": [0, 2]}}))
    assert "another shape" in str(refusal(loader, CorruptSide))


def test_a_head_with_more_outputs_than_labels_is_refused(publish, loader: Loader) -> None:
    publish(make_spec(), head="linear", edit=_three_outputs)
    assert "3 outputs" in str(refusal(loader, CorruptSide))


def test_an_embedding_of_other_dimensions_than_its_spec_says_is_refused(publish, loader: Loader) -> None:
    publish(make_spec(kind="embedding", dimensions=5), edit=_three_outputs)
    assert "3 outputs, its embedding spec needs 5" in str(refusal(loader, CorruptSide))


def test_an_embedding_that_comes_out_otherwise_is_refused(publish, loader: Loader) -> None:
    publish(make_spec(kind="embedding", dimensions=2000), change=_negate_head)
    assert "an embedding 2 away (tolerance 0.001)" in str(refusal(loader, GoldenMismatch))


def test_an_embedding_by_a_text_head_is_refused(publish, loader: Loader) -> None:
    publish(make_spec(kind="embedding"), edit=_text_head)
    refusal(loader, CorruptSide)


def _negate_head(side: SideNetwork) -> None:
    assert isinstance(side.head, torch.nn.Linear)
    side.head.weight.mul_(-1)
    side.head.bias.mul_(-1)


def _text_head(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"side": manifest.side | {"head": "text", "outputs": 0}})


def _asking(text: str) -> Callable[[Manifest], Manifest]:
    """Of golden examples that ask about something else, and expect nothing of it."""
    example = GoldenExample(fields={"sentence": text}, expected={})
    return lambda manifest: manifest.model_copy(update={"examples": (example,)})


def _expecting_nothing(manifest: Manifest) -> Manifest:
    examples = tuple(example.model_copy(update={"expected": {}}) for example in manifest.examples)
    return manifest.model_copy(update={"examples": examples})


def _negate(side: SideNetwork) -> None:
    side.upsample.weight.mul_(-1)


def _three_outputs(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"side": manifest.side | {"outputs": 3}})


def test_side_settings_that_do_not_read_are_refused(publish, loader: Loader) -> None:
    publish(edit=lambda manifest: manifest.model_copy(update={"side": {"from": "the future"}}))
    assert "from" in str(refusal(loader, CorruptSide))


def test_a_store_that_is_away_is_a_transient_failure(publish, loader: Loader, registry: Registry, monkeypatch) -> None:
    publish()

    def away(*_: object) -> None:
        raise StoreFailed("s3://bucket", "blobs", "connection refused")

    monkeypatch.setattr(registry, "download", away)
    error = refusal(loader, LoadFailed)
    assert error.transient
    assert "connection refused" in str(error)


def test_a_version_that_is_not_there_is_a_load_failure(loader: Loader) -> None:
    assert "sst2" in str(refusal(loader, LoadFailed))


def test_an_unforeseen_fault_is_a_load_failure_that_is_not_retried(publish, loader: Loader, monkeypatch) -> None:
    publish()
    monkeypatch.setattr("serving.versions.loader.load_side", lambda *_, **__: 1 / 0)
    error = refusal(loader, LoadFailed)
    assert not error.transient
    assert "ZeroDivisionError" in str(error)


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
