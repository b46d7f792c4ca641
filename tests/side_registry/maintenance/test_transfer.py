"""A task goes from one registry to another whole, once, however often it is sent."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import (
    SIDE_NETWORK,
    ArtifactError,
    Blob,
    CorruptBlob,
    Manifest,
    Registry,
    Route,
    Store,
    TaskRef,
    UnknownTask,
    UnknownVersion,
)
from side_registry.blobs import blob_path
from side_registry.maintenance.exports import Export, ExportedVersion, open_export
from side_registry.maintenance.transfer import UPLOAD_THREADS, Imported, export_task, import_task
from side_registry.maintenance.verify import verify
from side_registry.manifest import NO_TOKENIZER
from tests.side_registry.runs import make_manifest, memory_store, weights

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


@pytest.fixture
def exported(source: Registry, tmp_path: Path) -> Path:
    export_task(source.store, TaskRef.parse("sst2"), tmp_path / "export")
    return tmp_path / "export"


@pytest.mark.parametrize("name", ["export", "export.tar"])
def test_versions_aliases_and_files_arrive(source: Registry, name: str, run: MakeRun, tmp_path: Path):
    store = memory_store()
    export_task(source.store, TaskRef.parse("sst2"), tmp_path / name)
    done = import_task(tmp_path / name, store)
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


def test_what_was_retired_stays_retired(exported: Path):
    store = memory_store()
    import_task(exported, store, aliases="none")
    target = Registry.open(store)
    target.retire("sst2", 1)
    done = import_task(exported, store, aliases="all")
    assert (done.retired, done.versions, done.new) == ((2,), {3: 2, 4: 3}, ())
    assert target.state().task("sst2").serving == {"canary": 2}
    assert import_task(exported, store).generation == done.generation


def test_what_was_deleted_comes_back(exported: Path):
    store = memory_store()
    import_task(exported, store)
    Registry.open(store).delete_task("sst2")
    done = import_task(exported, store)
    assert (done.retired, done.versions) == ((), {2: 4, 3: 5, 4: 6})


def test_few_files_are_in_memory_at_once(exported: Path, monkeypatch: pytest.MonkeyPatch):
    """The first upload waits until others have begun: as many as may, and no more."""
    store, changed, running, counts = memory_store(), threading.Condition(), set[str](), list[int]()
    overwrite = store.overwrite

    def waiting(path: str, data: bytes) -> None:
        with changed:
            running.add(path)
            counts.append(len(running))
            changed.notify_all()
            assert changed.wait_for(lambda: max(counts) >= UPLOAD_THREADS, timeout=60)
        overwrite(path, data)
        with changed:
            running.remove(path)

    monkeypatch.setattr(store, "overwrite", waiting)
    import_task(exported, store)
    assert len(counts) == 6
    assert max(counts) == UPLOAD_THREADS


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
        export = export_task(source.store, TaskRef.parse(ref), tmp_path / f"{versions}.tar")
        assert ([each.version for each in export.versions], export.aliases) == (versions, aliases)
    store = memory_store()
    import_task(tmp_path / "[4].tar", store)
    assert Registry.open(store).state().task("sst2").serving == {"production": 1}


@pytest.mark.parametrize("name", ["export", "export.tar"])
def test_a_newer_export_replaces_an_older_one(source: Registry, name: str, run: MakeRun, tmp_path: Path):
    export_task(source.store, TaskRef.parse("sst2"), tmp_path / name)
    source.publish(run(5))
    export_task(source.store, TaskRef.parse("sst2"), tmp_path / name)
    assert import_task(tmp_path / name, memory_store()).versions == {2: 1, 3: 2, 4: 3, 5: 4}


@pytest.mark.parametrize(
    ("ref", "error"), [("cola", UnknownTask), ("sst2:1", UnknownVersion), ("sst2:9", UnknownVersion)]
)
def test_what_is_not_there_writes_nothing(source: Registry, tmp_path: Path, ref: str, error: type[Exception]):
    with pytest.raises(error):
        export_task(source.store, TaskRef.parse(ref), tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_a_damaged_file_leaves_no_archive(source: Registry, tmp_path: Path):
    [file] = source.manifest("sst2", 3).files.values()
    Path(source.url, "blobs/sha256", file.sha256).write_bytes(b"?")
    with pytest.raises(CorruptBlob):
        export_task(source.store, TaskRef.parse("sst2"), tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_other_folders_are_not_written_to(source: Registry, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is no export"):
        export_task(source.store, TaskRef.parse("sst2"), tmp_path / "photos")


class TestBadTargets:
    """What is there stays as it is."""

    def refused(self, source: Registry, target: Path, match: str) -> None:
        before = {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()}
        with pytest.raises(ArtifactError, match=match):
            export_task(source.store, TaskRef.parse("sst2"), target)
        assert {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()} == before

    def test_an_archive_of_something_else(self, source: Registry, run: MakeRun, tmp_path: Path):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(run(1), "run")
        self.refused(source, tmp_path / "x.tar", r"is no export \(it has no export.json")

    def test_no_archive(self, source: Registry, tmp_path: Path):
        (tmp_path / "x.tar").write_bytes(b"a letter")
        self.refused(source, tmp_path / "x.tar", "it exists and is no export")

    @pytest.mark.parametrize("name", ["x", "x.tar"])
    def test_an_export_of_another_task(self, source: Registry, run: MakeRun, tmp_path: Path, name: str):
        source.publish(run(1, "cola"))
        export_task(source.store, TaskRef.parse("cola"), tmp_path / name)
        self.refused(source, tmp_path / name, "is an export of task 'cola'")

    def test_a_file_for_a_folder_and_a_folder_for_a_file(self, source: Registry, tmp_path: Path):
        (tmp_path / "x").write_bytes(b"")
        (tmp_path / "x.tar").mkdir()
        self.refused(source, tmp_path / "x", "it is a file")
        self.refused(source, tmp_path / "x.tar", "it is a folder")

    @pytest.mark.parametrize("name", ["file/x", "file/x.tar", "n" * 300, "n" * 300 + ".tar"])
    def test_nothing_can_be_written_there(
        self, source: Registry, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ):
        """It is told before any file is fetched."""
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setattr("side_registry.blobs.Blobs.read", None)
        self.refused(source, tmp_path / name, r"Not a directory|File exists|File name too long")

    @pytest.mark.parametrize("name", ["x", "x.tar"])
    def test_a_full_disk(self, source: Registry, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("side_registry.blobs.Blobs.fetch", full)
        with pytest.raises(ArtifactError, match="No space left on device"):
            export_task(source.store, TaskRef.parse("sst2"), tmp_path / name)
        assert not (tmp_path / "x.tar").exists()


class TestBadImports:
    """Nothing is published, not even the marker of a registry."""

    def refused(self, source: Path, match: str) -> None:
        store = memory_store()
        with pytest.raises(ArtifactError, match=match):
            import_task(source, store)
        assert store.is_empty()

    def archived(self, folder: Path, headers: dict[str, str]) -> None:
        with tarfile.open(folder / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            member = tarfile.TarInfo("export.json")
            member.pax_headers = headers
            archive.addfile(member)

    def by_hand(self, folder: Path, manifest: Manifest, file: bytes) -> None:
        """An export of one version, whatever it is; its digests are right."""
        (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        manifest_sha256 = self.put(folder, manifest.to_json())
        self.put(folder, file)
        version = ExportedVersion(version=1, manifest_sha256=manifest_sha256)
        export = Export(registry="x", task="sst2", versions=(version,))
        (folder / "export.json").write_bytes(export.to_json())

    def put(self, folder: Path, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (folder / blob_path(digest)).write_bytes(data)
        return digest

    def test_nothing_there(self, tmp_path: Path):
        self.refused(tmp_path / "nothing.tar", "there is no such folder or file")

    def test_nobody_s_folder(self):
        self.refused(Path("~nobody-has-this-name/x.tar"), "home directory")

    def test_a_run_is_no_export(self, run: MakeRun):
        self.refused(run(1), "it has no export.json")

    def test_a_file_that_is_no_archive(self, tmp_path: Path):
        (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
        self.refused(tmp_path / "x.tar", "it is no export")

    def test_half_an_archive(self, source: Registry, tmp_path: Path):
        export_task(source.store, TaskRef.parse("sst2"), tmp_path / "x.tar")
        data = (tmp_path / "x.tar").read_bytes()
        (tmp_path / "x.tar").write_bytes(data[: len(data) // 2])
        self.refused(tmp_path / "x.tar", r"x\.tar")

    @pytest.mark.parametrize("how", ["flipped", "lost"])
    def test_damage(self, source: Registry, tmp_path: Path, how: str):
        export_task(source.store, TaskRef.parse("sst2"), tmp_path / "x")
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
        export_task(source.store, TaskRef.parse("sst2"), tmp_path / "x")
        listing = tmp_path / "x" / "export.json"
        listing.write_text(json.dumps(json.loads(listing.read_text()) | change))
        self.refused(tmp_path / "x", why)

    def test_an_unreadable_source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def denied(*_: object) -> bool:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "is_dir", denied)
        self.refused(tmp_path / "x", "x: Permission denied")

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path):
        os.mkfifo(tmp_path / "x.tar")
        self.refused(tmp_path / "x.tar", "there is no such folder or file")

    @pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
    def test_a_compressed_archive(self, source: Registry, tmp_path: Path, compress: Callable[[bytes], bytes]):
        export_task(source.store, TaskRef.parse("sst2"), tmp_path / "x.tar")
        (tmp_path / "x.tar").write_bytes(compress((tmp_path / "x.tar").read_bytes()))
        self.refused(tmp_path / "x.tar", "compressed")

    def test_an_archive_with_holes(self, tmp_path: Path):
        """A few bytes that would unpack to 4 GiB."""
        self.archived(tmp_path, {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(4 << 30)})
        self.refused(tmp_path / "x.tar", "'export.json' is a sparse file")

    def test_an_archive_whose_headers_are_nonsense(self, tmp_path: Path):
        self.archived(tmp_path, {"GNU.sparse.map": "0,0", "GNU.sparse.size": "many"})
        self.refused(tmp_path / "x.tar", "it is no export")

    def test_an_archive_that_would_be_read_for_ever(self, tmp_path: Path):
        """A member of a negative size leads back to itself."""
        header = bytearray(tarfile.TarInfo("export.json").tobuf())
        header[124:136] = (-1024).to_bytes(12, "big", signed=True)
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
        (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(1024))
        self.refused(tmp_path / "x.tar", "-1024 bytes")

    def test_what_no_manifest_names_stays_packed(self, source: Registry, tmp_path: Path):
        export_task(source.store, TaskRef.parse("sst2"), tmp_path / "x.tar")
        with tarfile.open(tmp_path / "x.tar", "a") as archive:
            archive.addfile(tarfile.TarInfo(blob_path("a" * 64)), io.BytesIO())
        with open_export(tmp_path / "x.tar") as (folder, _, versions):
            unpacked = {path.name for path in folder.rglob("*") if path.is_file()}
        files = {blob.sha256 for version in versions for blob in version.manifest.files.values()}
        assert unpacked == {"export.json", *files, *(version.manifest_sha256 for version in versions)}

    @pytest.mark.parametrize(
        ("change", "file", "why"),
        [
            ({"files": {}}, weights(b"a"), f"does not name {SIDE_NETWORK}"),
            ({"tokenizer_fingerprint": NO_TOKENIZER}, weights(b"a"), "without a tokenizer"),
            ({}, weights(b"a")[:-1], "no whole safetensors file"),
        ],
        ids=["no side network", "no tokenizer", "torn"],
    )
    def test_what_publish_would_refuse(self, tmp_path: Path, change: dict[str, object], file: bytes, why: str):
        """An export can be made by hand."""
        blob = Blob(sha256=hashlib.sha256(file).hexdigest(), size=len(file))
        manifest = make_manifest().model_copy(update={"files": {SIDE_NETWORK: blob}, **change})
        self.by_hand(tmp_path / "x", manifest, file)
        self.refused(tmp_path / "x", why)

    def test_files_that_change_after_they_were_verified(
        self, source: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        export_task(source.store, TaskRef.parse("sst2"), tmp_path / "x")
        store = memory_store()
        overwrite = store.put_new

        def put_new(path: str, data: bytes) -> bool:
            for file in (tmp_path / "x/blobs/sha256").iterdir():
                file.write_bytes(b"another")
            return overwrite(path, data)

        monkeypatch.setattr(store, "put_new", put_new)
        with pytest.raises(ArtifactError, match="changed while it was imported"):
            import_task(tmp_path / "x", store)
        assert Registry.open(store).state().generation == 0

    def test_an_address_is_not_made_for_nothing(self, run: MakeRun, tmp_path: Path):
        with pytest.raises(ArtifactError):
            import_task(tmp_path / "typo.tar", tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_an_archive_cannot_write_elsewhere(self, source: Registry, tmp_path: Path):
        export_task(source.store, TaskRef.parse("sst2"), tmp_path / "x.tar")
        with tarfile.open(tmp_path / "x.tar", "a") as archive:
            for name in ("../escaped", str(tmp_path / "escaped too"), "blobs/sha256/../../../escaped"):
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())
            link = tarfile.TarInfo("blobs/sha256/" + "a" * 64)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        assert import_task(tmp_path / "x.tar", memory_store()).new == (1, 2, 3)
        assert not list(tmp_path.rglob("escaped*"))
