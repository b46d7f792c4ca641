from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from side_registry import (
    MANIFEST,
    SIDE_NETWORK,
    ArtifactError,
    CorruptBlob,
    InvalidName,
    NotARegistry,
    NothingToRollBack,
    Publish,
    Registry,
    RegistryNotFound,
    SetAlias,
    State,
    StoreFailed,
    TaskRef,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    VersionInUse,
    read_artifact,
)
from side_registry.blobs import blob_path
from side_registry.log import Log
from tests.side_registry.clock import FakeClock
from tests.side_registry.runs import make_run, weights

MakeRun = Callable[..., Path]
WEIGHTS = weights(b"weights 1")


def resolve(registry: Registry, text: str) -> int:
    return registry.state().resolve(TaskRef.parse(text))


class TestOpen:
    def test_nothing_there_says_that_publish_makes_one(self, tmp_path: Path):
        for place in (tmp_path / "nowhere", tmp_path, "memory://"):
            with pytest.raises(RegistryNotFound, match="publish"):
                Registry.open(place)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_of_other_things_is_refused_and_untouched(self, tmp_path: Path):
        (tmp_path / "notes.txt").write_text("mine")
        for create in (False, True):
            with pytest.raises(NotARegistry, match="other files"):
                Registry.open(tmp_path, create=create)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_a_file_is_no_registry(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(NotARegistry, match="it is a file"):
            Registry.open(tmp_path / "file")

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": 7}', '{"id": "x", "schema_version": 99}'])
    def test_a_damaged_marker_is_named(self, tmp_path: Path, content: str):
        (tmp_path / "registry.json").write_text(content)
        with pytest.raises(NotARegistry, match=r"registry\.json"):
            Registry.open(tmp_path, create=True)

    def test_paths_relative_absolute_with_spaces_and_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        made = Registry.open("my registry/sub", create=True)
        here = tmp_path / "my registry" / "sub"
        for place in (
            "my registry/sub",
            here,
            str(here),
            "~/my registry/sub",
            here.as_uri(),
            "./my registry/../my registry/sub",
        ):
            opened = Registry.open(place)
            assert (opened.id, Path(opened.url).resolve()) == (made.id, here)

    def test_create_opens_what_is_there(self, local: Registry):
        assert Registry.open(local.url, create=True).id == local.id

    def test_a_place_that_cannot_be_made_is_a_store_failure(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        for place in (tmp_path / "file" / "registry", tmp_path / ("x" * 300)):
            with pytest.raises(StoreFailed, match="check access"):
                Registry.open(place, create=True)


class TestPublish:
    def test_the_first_version_becomes_production_in_one_commit(self, registry: Registry, run: MakeRun):
        published = registry.publish(run(1))
        assert (published.task, published.version, published.generation) == ("sst2", 1, 1)
        assert published.aliases == {"production": 1}
        assert not published.already
        assert resolve(registry, "sst2") == 1

    def test_the_same_run_again_is_the_same_version(self, registry: Registry, run: MakeRun):
        first = registry.publish(run(1))
        again = registry.publish(run(1))
        assert (again.version, again.generation, again.already, again.aliases) == (1, first.generation, True, {})
        registry.publish(run(2))
        assert registry.publish(run(1), alias="canary").aliases == {"canary": 1}
        assert registry.state().task("sst2").live == (1, 2)

    def test_a_listing_needs_no_manifest(self, registry: Registry, run: MakeRun):
        registry.publish(run(1), author="ada@lab", message="first try")
        entry = registry.state().task("sst2").versions[1]
        assert (entry.kind, entry.run_id, entry.author, entry.message) == (
            "classification",
            "run-1",
            "ada@lab",
            "first try",
        )
        assert entry.backbone == registry.manifest("sst2", 1).backbone.fingerprint

    def test_equal_files_are_stored_once(self, local: Registry, tmp_path: Path):
        local.publish(make_run(tmp_path / "a", "sst2"))
        local.publish(make_run(tmp_path / "b", "cola"))
        assert len(list(Path(local.url, "blobs/sha256").iterdir())) == 3

    def test_a_bad_run_publishes_nothing(self, local: Registry, run: MakeRun):
        (run(1) / SIDE_NETWORK).write_bytes(b"weights X")
        with pytest.raises(ArtifactError):
            local.publish(run(1).parent / "sst2-9")
        with pytest.raises(InvalidName):
            local.publish(run(1), alias="7")
        with pytest.raises(InvalidName, match="at most 4000"):
            local.publish(run(1), message="x" * 5000)
        with pytest.raises(InvalidName, match="author"):
            local.publish(run(1), author="\udcff")
        assert local.state() == State()

    def test_a_crash_before_the_commit_leaves_nothing_visible(
        self, local: Registry, run: MakeRun, monkeypatch: pytest.MonkeyPatch
    ):
        local.publish(run(1))
        before = local.state()
        with monkeypatch.context() as patch:
            patch.setattr("side_registry.log.Log.append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                local.publish(run(2), alias="production")
        assert Registry.open(local.url).state() == before
        assert local.publish(run(2), alias="production").version == 2

    def test_a_put_that_was_retried_underneath_counts_once(
        self, registry: Registry, run: MakeRun, monkeypatch: pytest.MonkeyPatch
    ):
        """The store lost its first answer, tried again, and found what it had written itself."""
        put = registry.store.put_new

        def put_twice(path: str, data: bytes) -> bool:
            put(path, data)
            return put(path, data)

        monkeypatch.setattr(registry.store, "put_new", put_twice)
        published = registry.publish(run(1))
        assert (published.version, published.generation, published.already) == (1, 1, False)
        assert registry.state().generation == 1


class TestDownload:
    def test_a_version_comes_back_as_it_was(self, registry: Registry, run: MakeRun, tmp_path: Path):
        registry.publish(run(1))
        artifact = registry.download("sst2", 1, tmp_path / "deep" / "copy")
        assert artifact == read_artifact(tmp_path / "deep" / "copy")
        assert artifact.side_network.read_bytes() == WEIGHTS
        assert artifact.manifest_bytes == (run(1) / MANIFEST).read_bytes()

    def test_a_manifest_is_read_once_for_its_checks_and_its_files(
        self, registry: Registry, run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        registry.publish(run(1))
        asked, read = list[str](), registry.store.read
        monkeypatch.setattr(registry.store, "read", lambda path, limit: asked.append(path) or read(path, limit))
        stored = registry.artifact("sst2", 1)
        assert stored.manifest == read_artifact(run(1)).manifest
        assert not (tmp_path / "copy").exists()
        assert stored.download(tmp_path / "copy") == read_artifact(tmp_path / "copy")
        assert asked == [blob_path(registry.state(refresh=False).task("sst2").entry(1).manifest_sha256)]

    @pytest.mark.parametrize(
        ("damage", "why"),
        [
            (weights(b"weights X"), "does not match its name"),
            (WEIGHTS[:4], f"4 of its {len(WEIGHTS)} bytes"),
            (WEIGHTS + b" and more", f"more than the {len(WEIGHTS)} bytes"),
            (b"", f"0 of its {len(WEIGHTS)} bytes"),
            (None, "it is missing"),
        ],
    )
    def test_a_damaged_blob_never_reaches_the_folder(
        self, local: Registry, run: MakeRun, tmp_path: Path, damage: bytes | None, why: str
    ):
        local.publish(run(1))
        digest = local.manifest("sst2", 1).files[SIDE_NETWORK].sha256
        spoil(local, digest, damage)
        with pytest.raises(CorruptBlob, match=f"{digest}.*{why}"):
            local.download("sst2", 1, tmp_path / "copy")
        assert list((tmp_path / "copy").iterdir()) == []
        assert local.publish(run(1)).already  # and mends it
        local.download("sst2", 1, tmp_path / "copy")

    @pytest.mark.parametrize("damage", [b"{}", b"", None, b" " * (17 << 20)])
    def test_a_damaged_manifest_is_refused(self, local: Registry, run: MakeRun, tmp_path: Path, damage: bytes | None):
        local.publish(run(1))
        spoil(local, local.state().task("sst2").versions[1].manifest_sha256, damage)
        with pytest.raises(CorruptBlob):
            local.manifest("sst2", 1)
        with pytest.raises(CorruptBlob):
            local.download("sst2", 1, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_what_is_there_is_kept_and_what_is_wrong_replaced(self, registry: Registry, run: MakeRun, tmp_path: Path):
        registry.publish(run(1))
        file = registry.download("sst2", 1, tmp_path / "copy").side_network
        before = file.stat().st_mtime_ns
        registry.download("sst2", 1, tmp_path / "copy")
        assert file.stat().st_mtime_ns == before
        file.write_bytes(weights(b"weights X"))
        registry.download("sst2", 1, tmp_path / "copy")
        assert file.read_bytes() == WEIGHTS

    def test_unknown_versions(self, registry: Registry, run: MakeRun, tmp_path: Path):
        registry.publish(run(1))
        with pytest.raises(UnknownVersion, match="use one of 1"):
            registry.download("sst2", 2, tmp_path / "copy")
        with pytest.raises(UnknownTask, match="sst2"):
            registry.manifest("sst", 1)


class TestAliases:
    def test_moves_and_says_nothing_new_without_a_commit(self, registry: Registry, run: MakeRun):
        registry.publish(run(1))
        registry.publish(run(2))
        assert registry.set_alias("sst2", "production", 2) == 3
        assert registry.set_alias("sst2", "production", 2) == 3
        assert resolve(registry, "sst2") == 2

    def test_refuses_what_is_not_there(self, registry: Registry, run: MakeRun):
        with pytest.raises(UnknownTask, match="nothing is published"):
            registry.set_alias("sst2", "production", 1)
        registry.publish(run(1))
        with pytest.raises(UnknownVersion):
            registry.set_alias("sst2", "production", 7)
        with pytest.raises(InvalidName):
            registry.set_alias("sst2", "1", 1)
        with pytest.raises(UnknownAlias, match="its aliases: production"):
            resolve(registry, "sst2@canary")

    def test_rollback_goes_back_step_by_step(self, registry: Registry, run: MakeRun):
        for number in (1, 2, 3):
            registry.publish(run(number), alias="production")
        rolled = registry.rollback("sst2")
        assert (rolled.version_from, rolled.version_to, rolled.generation) == (3, 2, 4)
        assert registry.rollback("sst2").version_to == 1
        with pytest.raises(NothingToRollBack, match="promote"):
            registry.rollback("sst2")
        assert resolve(registry, "sst2") == 1

    def test_rollback_to_a_version_the_alias_had(self, registry: Registry, run: MakeRun):
        for number in (1, 2, 3):
            registry.publish(run(number), alias="production")
        registry.publish(run(4))
        assert registry.rollback("sst2", to=1).version_to == 1
        with pytest.raises(NothingToRollBack, match="promote version 4"):
            registry.rollback("sst2", to=4)
        with pytest.raises(UnknownVersion):
            registry.rollback("sst2", to=9)
        with pytest.raises(UnknownAlias):
            registry.rollback("sst2", alias="canary")


class TestRetireAndDelete:
    def test_a_version_in_use_stays(self, registry: Registry, run: MakeRun):
        registry.publish(run(1))
        with pytest.raises(VersionInUse, match="production"):
            registry.retire("sst2", 1)

    def test_a_retired_version_cannot_be_asked_for(self, registry: Registry, run: MakeRun):
        registry.publish(run(1))
        registry.publish(run(2))
        assert registry.retire("sst2", 2) == 3
        assert registry.retire("sst2", 2) == 3
        with pytest.raises(UnknownVersion, match="is retired"):
            resolve(registry, "sst2:2")
        with pytest.raises(UnknownVersion, match="is retired"):
            registry.set_alias("sst2", "canary", 2)
        with pytest.raises(UnknownVersion, match="has no version 7"):
            registry.retire("sst2", 7)

    def test_a_deleted_task_is_gone_but_its_numbers_go_on(self, registry: Registry, run: MakeRun):
        registry.publish(run(1))
        registry.publish(run(2), alias="canary")
        registry.delete_task("sst2")
        with pytest.raises(UnknownTask):
            resolve(registry, "sst2")
        with pytest.raises(UnknownTask):
            registry.delete_task("sst2")
        assert registry.state().live == {}
        published = registry.publish(run(1))
        assert (published.version, published.aliases, published.already) == (3, {"production": 3}, False)
        assert registry.state().task("sst2").serving == {"production": 3}
        with pytest.raises(NothingToRollBack):
            registry.rollback("sst2")


class TestHistoryAndWait:
    def test_history_says_who_when_why_and_from_which_run(self, registry: Registry, run: MakeRun):
        registry.publish(run(1), author="ada@lab", message="first")
        registry.publish(run(1, "cola"))
        registry.publish(run(2), alias="production")
        first, last = registry.history("sst2")
        assert (first.generation, first.author, first.message) == (1, "ada@lab", "first")
        assert first.time.endswith("Z")
        assert [type(action) for action in last.actions] == [Publish, SetAlias]
        assert [action.run_id for action in last.actions if isinstance(action, Publish)] == ["run-2"]
        assert "@" in last.author
        assert [commit.generation for commit in registry.history()] == [1, 2, 3]

    def test_a_history_of_the_newest_reads_only_those(
        self, registry: Registry, run: MakeRun, monkeypatch: pytest.MonkeyPatch
    ):
        for number in range(1, 7):
            registry.publish(run(number, "cola" if number == 5 else "sst2"))
        asked, read = list[int](), Log.read
        monkeypatch.setattr(Log, "read", lambda log, generation: asked.append(generation) or read(log, generation))
        assert [commit.generation for commit in registry.history(limit=2)] == [5, 6]
        assert min(asked) == 5
        assert [commit.generation for commit in registry.history("sst2", 2)] == [4, 6]
        assert [commit.generation for commit in registry.history("cola", 2)] == [5]
        monkeypatch.setattr("side_registry.registry.HISTORY_CHUNK", 2)
        asked.clear()
        assert [commit.generation for commit in registry.history("cola", 1)] == [5]
        assert min(asked) == 5
        assert [commit.generation for commit in registry.history("sst2", 3)] == [3, 4, 6]
        assert len(registry.history("sst2", 99)) == 5
        assert len(registry.history(limit=6)) == len(registry.history(limit=99)) == len(registry.history()) == 6

    def test_history_of_nothing_and_of_a_deleted_task(self, registry: Registry, run: MakeRun):
        assert registry.history() == []
        registry.publish(run(1))
        registry.delete_task("sst2")
        assert len(registry.history("sst2")) == 2
        with pytest.raises(UnknownTask):
            registry.history("cola")

    def test_clocks_that_jump_change_no_order(self, registry: Registry, run: MakeRun, monkeypatch: pytest.MonkeyPatch):
        class Backwards(datetime):
            years = iter((2030, 1999, 2026))

            @classmethod
            def now(cls, tz=None):
                return cls(next(cls.years), 1, 1, tzinfo=UTC)

        monkeypatch.setattr("side_registry.registry.datetime", Backwards)
        for number in (1, 2, 3):
            registry.publish(run(number), alias="production")
        assert [commit.time[:4] for commit in registry.history()] == ["2030", "1999", "2026"]
        assert resolve(registry, "sst2") == 3
        assert registry.state().task("sst2").live == (1, 2, 3)

    def test_wait_sees_a_publish_at_the_next_poll(self, local: Registry, run: MakeRun, clock: FakeClock):
        watcher = Registry.open(local.url)
        clock.on_sleep = lambda: local.publish(run(1))
        state = watcher.wait(after=0, timeout_s=10)
        assert clock.slept == [0.2]
        assert state is not None
        assert state.task("sst2").serving == {"production": 1}

    def test_wait_gives_up_and_returns_at_once_when_behind(self, registry: Registry, run: MakeRun, clock: FakeClock):
        assert registry.wait(after=0, timeout_s=5, poll_s=2) is None
        assert clock.slept == [2, 2, 1]
        registry.publish(run(1))
        state = registry.wait(after=0, timeout_s=0)
        assert state is not None
        assert state.generation == 1

    def test_a_state_in_hand_never_changes(self, registry: Registry, run: MakeRun):
        registry.publish(run(1))
        held = registry.state()
        as_it_was = repr(held)
        registry.publish(run(2), alias="production")
        registry.delete_task("sst2")
        assert repr(held) == as_it_was
        assert registry.state(refresh=False).generation == 3


def spoil(registry: Registry, digest: str, content: bytes | None) -> None:
    path = Path(registry.url, "blobs/sha256", digest)
    path.unlink() if content is None else path.write_bytes(content)
