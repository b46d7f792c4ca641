"""The loader against a real registry: what it makes, and everything it refuses, each with its typed reason."""

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ladder import Backbone, Row, SideNetwork, Tokenizer, answer, load_backbone
from ladder.stacked.network import StackedSide
from serving.config import LoadConfig
from serving.errors import (
    CorruptSide,
    GoldenMismatch,
    IncompatibleSide,
    LoadError,
    LoadFailed,
    SideTooLarge,
    TextsTooLong,
)
from serving.versions.golden import difference
from serving.versions.loader import Loader
from side_registry import BackboneRef, Manifest, Registry, StoreFailed
from side_registry.blobs import Blobs
from tests.serving.kit import ids_of, make_spec, words_of
from tests.serving.versions.kit import negate, refusal


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
        ("multilabel", "linear"),
        ("multilabel", "mlp"),
        ("token_classification", "linear"),
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
    words = words_of(tokenizer, "dull") if kind == "token_classification" else None
    row = Row(ids=ids_of(tokenizer, "dull"), side=resident.side, answerer=resident.answerer, words=words)
    [answered] = answer(backbone, [row])
    assert not isinstance(answered, Exception)
    assert difference(answered, resident.manifest.examples[1].expected, 1e-5, exact_text=True) is None


def test_a_load_reads_the_manifest_once(publish, loader: Loader, registry: Registry, monkeypatch) -> None:
    publish()
    digest = registry.state().task("sst2").entry(1).manifest_sha256
    read: list[str] = []
    whole = Blobs.read
    monkeypatch.setattr(Blobs, "read", lambda blobs, digest, limit: read.append(digest) or whole(blobs, digest, limit))
    loader.load("sst2", 1)
    assert read == [digest]


def test_tidying_frees_the_memory_of_removed_versions_and_keeps_the_others(
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


@pytest.mark.parametrize("damage", ["truncated", "flipped", "longer", "missing"])
def test_damaged_bytes_are_a_transient_failure(publish, loader: Loader, registry: Registry, damage: str) -> None:
    blob = Path(registry.url) / "blobs" / "sha256" / publish()
    data = bytearray(blob.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    changed = {"truncated": data[:-100], "longer": data + b"more", "flipped": data}
    blob.unlink() if damage == "missing" else blob.write_bytes(bytes(changed[damage]))
    error = refusal(loader, CorruptSide)
    assert error.transient
    assert blob.name in str(error)


OTHER_BACKBONE = BackboneRef(name="t5-other", fingerprint="sha256:0123")


@pytest.mark.parametrize(
    ("kind", "change", "error", "words"),
    [
        ("classification", {"backbone": OTHER_BACKBONE}, IncompatibleSide, ("t5-other", "retrain")),
        ("classification", {"tokenizer_fingerprint": "sha256:4567"}, IncompatibleSide, ("tokenizer sha256:4567",)),
        ("classification", {"visual": {"features": 8}}, CorruptSide, ("reads images, its task has none",)),
        ("classification", {"side": {"from": "the future"}}, CorruptSide, ("its settings do not read", "from")),
        ("classification", {"encoder_layers": [0, 2]}, CorruptSide, ("another shape than its manifest says",)),
        ("classification", {"outputs": 3}, CorruptSide, ("3 outputs, its classification spec needs 2",)),
        ("classification", {"pair": True}, CorruptSide, ("reads two texts apart", "the fields sentence")),
        ("token_classification", {"outputs": 2}, CorruptSide, ("2 outputs, its token_classification spec needs 5",)),
        ("embedding", {"outputs": 3}, CorruptSide, ("3 outputs, its embedding spec needs 5",)),
        ("embedding", {"head": "text", "outputs": 0}, CorruptSide, ("another shape than its manifest says",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_manifest_that_does_not_fit_is_refused(
    publish, loader: Loader, kind: str, change: dict[str, Any], error: type[LoadError], words: tuple[str, ...]
) -> None:
    def edit(manifest: Manifest) -> Manifest:
        is_of_manifest = not change.keys().isdisjoint(Manifest.model_fields)
        return manifest.model_copy(update=change if is_of_manifest else {"side": manifest.side | change})

    spec = make_spec(kind=kind, dimensions=5) if kind == "embedding" else make_spec(kind=kind)
    publish(spec, head="linear", edit=edit)
    message = str(refusal(loader, error))
    assert all(word in message for word in words)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(publish, loader: Loader, value: float) -> None:
    def change(side: SideNetwork) -> None:
        side.upsample.weight[0, 0] = value

    publish(change=change)
    assert "finite" in str(refusal(loader, CorruptSide))


def test_a_network_that_cannot_be_stacked_is_served_as_a_module(
    publish, registry: Registry, tokenizer: Tokenizer, tiny_t5
):
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
    publish(change=negate)
    refusal(loader, GoldenMismatch)
    gc.collect()  # the error's traceback holds what it was raised over
    assert loader.bank.slots == 0


def test_a_side_network_over_the_size_limit_is_not_downloaded(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    monkeypatch.setattr(Blobs, "fetch", lambda *_: pytest.fail("fetched"))
    error = refusal(Loader(registry, backbone, tokenizer, LoadConfig(max_side_bytes=1000)), SideTooLarge)
    assert "1,000" in str(error)


def test_a_task_of_longer_texts_than_the_server_reads_is_not_downloaded(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(make_spec(max_source_tokens=200))
    limits = LoadConfig(max_row_tokens=200)
    assert Loader(registry, backbone, tokenizer, limits).load("sst2", 1)
    monkeypatch.setattr(Blobs, "fetch", lambda *_: pytest.fail("fetched"))
    error = refusal(Loader(registry, backbone, tokenizer, LoadConfig(max_row_tokens=199)), TextsTooLong)
    assert "200" in str(error)
    assert "max_row_tokens" in str(error)


def test_an_unreachable_store_is_a_transient_failure(publish, loader: Loader, monkeypatch) -> None:
    publish()

    def away(*_: object) -> None:
        raise StoreFailed("s3://bucket", "blobs", "connection refused")

    monkeypatch.setattr(Blobs, "fetch", away)
    error = refusal(loader, LoadFailed)
    assert error.transient
    assert "connection refused" in str(error)


def test_a_missing_version_is_a_load_failure(loader: Loader) -> None:
    assert "sst2" in str(refusal(loader, LoadFailed))


def test_an_unforeseen_fault_is_a_load_failure_that_is_not_retried(publish, loader: Loader, monkeypatch) -> None:
    publish()
    monkeypatch.setattr("serving.versions.loader.load_side", lambda *_, **__: 1 / 0)
    error = refusal(loader, LoadFailed)
    assert not error.transient
    assert "ZeroDivisionError" in str(error)
