"""Checkpoints: they lead to the log's state, or are skipped."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import Bounds, Registry, Route, State, fold
from side_registry.checkpoints import KEPT, SCHEMA, Checkpoint, load_checkpoint
from side_registry.log import Log, log_path
from tests.side_registry.runs import move_aliases

MakeRun = Callable[..., Path]


@pytest.fixture
def busy(local: Registry, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Twelve commits, a checkpoint every third; three of them are kept."""
    monkeypatch.setattr("side_registry.registry.EVERY", 3)
    local.publish(run(1))
    local.publish(run(2))
    move_aliases(local, 10)
    return local


@pytest.fixture
def routed(local: Registry, run: MakeRun) -> Registry:
    for number in (1, 2, 3):
        local.publish(run(number))
    local.set_route("sst2", "production", Route(shares={2: 500}, shadows=(3,), bounds=Bounds(error_rate=0.01)))
    return local


def checkpoints(registry: Registry) -> list[Path]:
    return sorted(Path(registry.url, "checkpoints").iterdir())


def test_only_the_newest_are_kept(busy: Registry):
    assert [int(path.name[:20]) for path in checkpoints(busy)] == [6, 9, 12]
    assert len(checkpoints(busy)) == KEPT


def test_every_checkpoint_leads_to_the_same_state(busy: Registry, tmp_path: Path):
    truth = fold(Log(busy.store).after(0))
    for path in checkpoints(busy):
        copy = tmp_path / path.name
        shutil.copytree(busy.url, copy)
        for other in (copy / "checkpoints").iterdir():
            if other.name != path.name:
                other.unlink()
        assert load_checkpoint(Registry.open(copy).store, Log(busy.store)).generation == int(path.name[:20])
        assert Registry.open(copy).state() == truth


def test_opening_reads_only_the_end_of_the_log(busy: Registry, monkeypatch: pytest.MonkeyPatch):
    move_aliases(busy, 1)
    reader, asked = Registry.open(busy.url), []
    read = reader.store.read
    monkeypatch.setattr(reader.store, "read", lambda path, limit: asked.append(path) or read(path, limit))
    assert reader.state() == busy.state()
    assert [path for path in asked if path.startswith("log/")] == [log_path(n) for n in (12, 13, 14)]


@pytest.mark.parametrize("damage", ["lost", "empty", "truncated", "flipped", "foreign"])
def test_a_damaged_checkpoint_is_passed_over(busy: Registry, damage: str):
    truth = fold(Log(busy.store).after(0))
    for path in checkpoints(busy):
        data = path.read_bytes()
        if damage == "lost":
            path.unlink()
        elif damage == "foreign":
            path.rename(path.with_name("latest"))
        else:
            path.write_bytes(
                {"empty": b"", "truncated": data[:-9], "flipped": data.replace(b"canary", b"canarx")}[damage]
            )
    assert Registry.open(busy.url).state() == truth


def test_a_checkpoint_ahead_of_its_log_is_passed_over(busy: Registry):
    Path(busy.url, log_path(12)).unlink()
    assert Registry.open(busy.url).state().generation == 11


def test_a_checkpoint_of_another_log_is_passed_over(busy: Registry, tmp_path: Path, run: Callable[..., Path]):
    other = Registry.open(tmp_path / "other", create=True)
    other.publish(run(1))
    other.publish(run(2))
    move_aliases(other, 10)
    shutil.rmtree(Path(busy.url, "checkpoints"))
    shutil.copytree(Path(other.url, "checkpoints"), Path(busy.url, "checkpoints"))
    assert Registry.open(busy.url).state().head == busy.history()[-1].id


def test_a_checkpoint_that_cannot_be_written_fails_no_commit(
    local: Registry, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("side_registry.registry.EVERY", 1)
    Path(local.url, "checkpoints").write_text("a file where a folder should be")
    assert local.publish(run(1)).generation == 1
    assert "checkpoint of generation 1 not kept" in caplog.text


def test_a_checkpoint_of_another_schema_is_folded_again(routed: Registry):
    """One that knew no routes would lead to a state without them."""
    store = routed.store
    document = json.loads(Checkpoint(state=routed.state()).to_json())
    for task in document["state"]["tasks"].values():
        del task["routes"], task["routed"]
    data = json.dumps(document | {"schema_version": SCHEMA - 1}).encode()
    store.put_new(f"checkpoints/{routed.state().generation:020d}-{hashlib.sha256(data).hexdigest()}.json", data)
    assert load_checkpoint(store, Log(store)) == State()
    assert Registry.open(routed.url).state() == routed.state()
