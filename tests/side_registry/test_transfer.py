"""A task goes from one registry to another whole, once, however often it is sent."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import (
    SIDE_NETWORK,
    ArtifactError,
    CorruptBlob,
    Registry,
    Route,
    Store,
    TaskRef,
    UnknownTask,
    UnknownVersion,
)
from side_registry.transfer import Imported, export_task, import_task
from side_registry.verify import verify
from tests.side_registry.runs import memory_store

MakeRun = Callable[..., Path]


@pytest.fixture
def source(local: Registry, run: MakeRun) -> Registry:
    """Versions 1 (retired), 2 (production), 3 (canary, with a share), 4."""
    for number in (1, 2, 3, 4):
        local.publish(run(number))
    local.set_alias("sst2", "production", 2)
    local.set_alias("sst2", "canary", 3)
    local.set_route("sst2", "production", Route(shares={3: 500}))
    local.retire("sst2", 1)
    return local


@pytest.fixture(params=["export", "export.tar"])
def exported(source: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    target = tmp_path / request.param
    export_task(source._store, TaskRef.parse("sst2"), target)
    return target


def test_versions_aliases_and_files_arrive(source: Registry, exported: Path, run: MakeRun, tmp_path: Path):
    store = memory_store()
    done = import_task(exported, store)
    assert done == Imported(
        task="sst2",
        versions={2: 1, 3: 2, 4: 3},
        new=(1, 2, 3),
        aliases={"production": 1, "canary": 2},
        generation=1,
    )
    target = Registry.open(store)
    assert target.state().task("sst2").serving == {"production": 1, "canary": 2}
    assert target.state().task("sst2").routes == {}
    for old, new in done.versions.items():
        assert target.manifest("sst2", new) == source.manifest("sst2", old)
        copy = target.download("sst2", new, tmp_path / f"copy-{new}")
        assert copy.side_network.read_bytes() == (run(old) / SIDE_NETWORK).read_bytes()
    assert verify(store).findings == ()


def test_imported_twice_is_imported_once(exported: Path):
    store = memory_store()
    import_task(exported, store)
    again = import_task(exported, store)
    assert (again.new, again.aliases, again.generation) == ((), {}, 1)
    assert again.versions == {2: 1, 3: 2, 4: 3}


def test_back_to_where_it_came_from_changes_nothing(source: Registry, exported: Path):
    before = source.state()
    done = import_task(exported, Store.open(source.url), aliases="all")
    assert done.versions == {2: 2, 3: 3, 4: 4}
    assert source.state() == before


def test_what_is_new_gets_the_next_numbers(source: Registry, exported: Path, run: MakeRun):
    store = memory_store()
    target = Registry.open(store, create=True)
    target.publish(run(9))
    target.publish(run(3))
    done = import_task(exported, store)
    assert done.versions == {2: 3, 3: 2, 4: 4}
    assert done.new == (3, 4)
    assert target.state().task("sst2").last_version == 4


@pytest.mark.parametrize(
    ("aliases", "serving"),
    [
        ("missing", {"production": 1, "canary": 3}),
        ("all", {"production": 2, "canary": 3}),
        ("none", {"production": 1}),
    ],
)
def test_aliases_move_as_told(exported: Path, run: MakeRun, aliases: str, serving: dict[str, int]):
    store = memory_store()
    target = Registry.open(store, create=True)
    target.publish(run(9))
    import_task(exported, store, aliases=aliases)  # type: ignore[arg-type]
    assert target.state().task("sst2").serving == serving


def test_one_version(source: Registry, tmp_path: Path):
    for ref, versions, aliases in (("sst2:4", [4], {}), ("sst2@canary", [3], {"canary": 3})):
        export = export_task(source._store, TaskRef.parse(ref), tmp_path / f"{versions}.tar")
        assert ([each.version for each in export.versions], export.aliases) == (versions, aliases)
    store = memory_store()
    import_task(tmp_path / "[4].tar", store)
    assert Registry.open(store).state().task("sst2").serving == {"production": 1}


def test_a_newer_export_replaces_an_older_one(source: Registry, exported: Path, run: MakeRun):
    source.publish(run(5))
    export_task(source._store, TaskRef.parse("sst2"), exported)
    assert import_task(exported, memory_store()).versions == {2: 1, 3: 2, 4: 3, 5: 4}


@pytest.mark.parametrize(
    ("ref", "error"), [("cola", UnknownTask), ("sst2:1", UnknownVersion), ("sst2:9", UnknownVersion)]
)
def test_what_is_not_there_writes_nothing(source: Registry, tmp_path: Path, ref: str, error: type[Exception]):
    with pytest.raises(error):
        export_task(source._store, TaskRef.parse(ref), tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_a_damaged_file_leaves_no_archive(source: Registry, tmp_path: Path):
    [file] = source.manifest("sst2", 3).files.values()
    Path(source.url, "blobs/sha256", file.sha256).write_bytes(b"?")
    with pytest.raises(CorruptBlob):
        export_task(source._store, TaskRef.parse("sst2"), tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_other_folders_are_not_written_to(source: Registry, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is no export"):
        export_task(source._store, TaskRef.parse("sst2"), tmp_path / "photos")


class TestBadImports:
    """Nothing is published, not even the marker of a registry."""

    def refused(self, source: Path, match: str) -> None:
        store = memory_store()
        with pytest.raises(ArtifactError, match=match):
            import_task(source, store)
        assert store.is_empty()

    def test_nothing_there(self, tmp_path: Path):
        self.refused(tmp_path / "nothing.tar", "there is no such folder or file")

    def test_a_run_is_no_export(self, run: MakeRun):
        self.refused(run(1), "it has no export.json")

    def test_a_file_that_is_no_archive(self, tmp_path: Path):
        (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
        self.refused(tmp_path / "x.tar", "it is no export")

    def test_half_an_archive(self, source: Registry, tmp_path: Path):
        export_task(source._store, TaskRef.parse("sst2"), tmp_path / "x.tar")
        data = (tmp_path / "x.tar").read_bytes()
        (tmp_path / "x.tar").write_bytes(data[: len(data) // 2])
        self.refused(tmp_path / "x.tar", r"x\.tar")

    @pytest.mark.parametrize("how", ["flipped", "lost"])
    def test_damage(self, source: Registry, tmp_path: Path, how: str):
        export_task(source._store, TaskRef.parse("sst2"), tmp_path / "x")
        for path in sorted((tmp_path / "x/blobs/sha256").iterdir()):
            data = path.read_bytes()
            path.unlink() if how == "lost" else path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            self.refused(tmp_path / "x", "missing or damaged; export it again|manifest of sst2:")
            path.write_bytes(data)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"schema_version": 99}, "upgrade sidecast"),
            ({"task": "../x"}, "task"),
            ({"task": "cola"}, "of task 'sst2'"),
            ({"versions": []}, "versions"),
            ({"aliases": {"production": 9}}, "production points to a version that it does not hold"),
            ({"aliases": {"7": 2}}, "aliases"),
        ],
    )
    def test_a_listing_that_lies(self, source: Registry, tmp_path: Path, change: dict, why: str):
        export_task(source._store, TaskRef.parse("sst2"), tmp_path / "x")
        listing = tmp_path / "x" / "export.json"
        listing.write_text(json.dumps(json.loads(listing.read_text()) | change))
        self.refused(tmp_path / "x", why)

    def test_an_archive_cannot_write_elsewhere(self, source: Registry, tmp_path: Path):
        export_task(source._store, TaskRef.parse("sst2"), tmp_path / "x.tar")
        with tarfile.open(tmp_path / "x.tar", "a") as archive:
            for name in ("../escaped", str(tmp_path / "escaped too"), "blobs/sha256/../../../escaped"):
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())
            link = tarfile.TarInfo("blobs/sha256/" + "a" * 64)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        assert import_task(tmp_path / "x.tar", memory_store()).new == (1, 2, 3)
        assert not list(tmp_path.rglob("escaped*"))
