"""`verify` finds each kind of damage, names it, and calls nothing else damage."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from side_registry import Registry, State, Store
from side_registry.blobs import Blobs
from side_registry.checkpoints import save_checkpoint
from side_registry.log import log_path
from side_registry.maintenance.verify import Verified, verify
from tests.side_registry.runs import make_run, memory_store

MakeRun = Callable[..., Path]


@pytest.fixture
def full(local: Registry, run: MakeRun) -> Registry:
    """Two tasks, five versions, one of them retired, and a checkpoint."""
    for number in (1, 2, 3):
        local.publish(run(number))
    for number in (1, 2):
        local.publish(run(number, "cola"), alias="canary")
    local.retire("sst2", 2)
    save_checkpoint(local.store, local.state())
    local.set_alias("sst2", "production", 3)
    return local


def found(registry: Registry) -> Verified:
    return verify(Store.open(registry.url))


def damage(registry: Registry) -> list[tuple[str, str]]:
    return [(each.path, each.what) for each in found(registry).findings if each.level == "damage"]


def blob(registry: Registry, task: str, version: int) -> Path:
    [file] = registry.manifest(task, version).files.values()
    return Path(registry.url, "blobs/sha256", file.sha256)


def manifest(registry: Registry, task: str, version: int) -> Path:
    return Path(registry.url, "blobs/sha256", registry.state().tasks[task].versions[version].manifest_sha256)


def test_a_sound_registry(full: Registry):
    assert found(full) == Verified(generation=7, tasks=2, versions=5, blobs=8, size=found(full).size, findings=())
    assert found(full).size == sum(path.stat().st_size for path in Path(full.url, "blobs/sha256").iterdir())


def test_an_empty_registry_is_sound(local: Registry):
    assert found(local).sound


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "longer", "lost"])
def test_a_damaged_file_is_named_with_its_version(full: Registry, how: str):
    path = blob(full, "sst2", 3)
    spoil(path, how)
    [(where, what)] = damage(full)
    assert where == f"blobs/sha256/{path.name}"
    assert "side_network.safetensors of " in what
    assert "publish its run again" in what


@pytest.mark.parametrize("how", ["flipped", "truncated", "lost"])
def test_a_damaged_manifest_is_named_with_its_version(full: Registry, how: str):
    path = manifest(full, "cola", 1)
    spoil(path, how)
    assert [where for where, what in damage(full) if "the manifest of cola:1" in what] == [f"blobs/sha256/{path.name}"]


@pytest.mark.parametrize("how", ["longer", "truncated", "empty", "lost"])
def test_a_damaged_commit_hides_what_follows(full: Registry, how: str):
    spoil(Path(full.url, log_path(4)), how)
    result = found(full)
    assert result.generation == 3
    assert [each.path for each in result.findings if each.level == "damage"] == [log_path(4)]


def test_a_commit_that_does_not_follow(full: Registry):
    text = Path(full.url, log_path(7)).read_text()
    Path(full.url, log_path(7)).write_text(text.replace('"version":3', '"version":9'))
    [(path, what)] = damage(full)
    assert path == log_path(7)
    assert "no version 9" in what


def test_a_log_that_says_what_the_manifest_does_not(full: Registry):
    path = Path(full.url, log_path(3))
    path.write_text(path.read_text().replace('"kind":"classification"', '"kind":"text"'))
    assert any("its kind is 'classification', not 'text'" in what for _, what in damage(full))


def test_a_checkpoint_that_is_not_what_the_log_adds_up_to(full: Registry):
    state = full.state()
    save_checkpoint(full.store, State(generation=state.generation, head=state.head))
    [(path, what)] = damage(full)
    assert path.startswith("checkpoints/")
    assert "remove it" in what


def test_an_empty_last_commit_may_be_removed(full: Registry):
    """All that a machine left that failed while it wrote it. Earlier ones must come from a backup."""
    spoil(Path(full.url, log_path(7)), "empty")
    [(path, what)] = damage(full)
    assert path == log_path(7)
    assert "stop every server and publisher" in what
    spoil(Path(full.url, log_path(5)), "empty")
    [(path, what)] = damage(full)
    assert path == log_path(5)
    assert "remove it" not in what


def test_checkpoints_beyond_a_damaged_commit_are_not_judged(full: Registry):
    """They are what lets readers past it."""
    spoil(Path(full.url, log_path(4)), "truncated")
    assert [each.path for each in found(full).findings if each.path.startswith("checkpoints/")] == []


def test_checkpoints_that_come_and_go_meanwhile_are_sound(full: Registry, monkeypatch: pytest.MonkeyPatch):
    """As whoever publishes at the same time makes them, and removes old ones."""
    store = Store.open(full.url)
    listed, look = store.list, []

    def others_publish(prefix: str) -> list[str]:
        paths = listed(prefix)
        look.append(prefix)
        full.set_alias("sst2", "canary", 1 if len(look) % 2 else 3)
        if prefix == "checkpoints":
            for path in paths:
                store.remove(path)
        save_checkpoint(full.store, full.state())
        return paths

    monkeypatch.setattr(store, "list", others_publish)
    assert verify(store).findings == ()
    assert look[:2] == ["checkpoints", "log"]


def test_what_nothing_reads_is_only_noted(full: Registry):
    strangers = ["log/README", "log/7.json", "checkpoints/latest", "blobs/sha256/abc", "blobs/x", "trash/x/y"]
    for path in strangers:
        full.store.put_new(path, b"?")
    [checkpoint] = Path(full.url, "checkpoints").glob("0*")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5])
    result = found(full)
    assert result.sound
    noted = {each.path for each in result.findings}
    assert noted == {*strangers[:-1], "trash", f"checkpoints/{checkpoint.name}"}


def test_orphans_are_counted_in_a_note(full: Registry):
    Blobs(full.store).add(b"nobody's")
    [note] = found(full).findings
    assert note.level == "note"
    assert "1 files; sidecast registry gc" in note.what


def test_files_of_a_retired_version_may_be_gone(full: Registry):
    """`gc --retired` takes them."""
    blob(full, "sst2", 2).unlink(missing_ok=True)
    other = [each for each in damage(full) if "sst2:2" in each[1]]
    assert other == []


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "lost":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"flipped": flipped, "truncated": data[:middle], "empty": b"", "longer": data + b"!"}[how])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_of_a_blob_is_damage(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    store = memory_store()
    registry = Registry.open(store, create=True)
    registry.publish(make_run(tmp_path_factory.mktemp("run")))
    path = data.draw(st.sampled_from(store.list("blobs")))
    content = bytearray(store.read(path, 1 << 20) or b"")
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    content[place // 8] ^= 1 << place % 8
    store.overwrite(path, bytes(content))
    assert path in [each.path for each in verify(store).findings if each.level == "damage"]
