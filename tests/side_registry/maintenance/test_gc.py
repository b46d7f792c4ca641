"""`gc` removes what nobody refers to and is old, and nothing else, whoever publishes meanwhile."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from side_registry import SIDE_NETWORK, CorruptBlob, Registry, Store, StoreFailed, UnreadableCommit, log
from side_registry import store as parallel
from side_registry.blobs import Blobs
from side_registry.log import log_path
from side_registry.maintenance.gc import GRACE, collect
from side_registry.maintenance.verify import verify
from tests.side_registry.races.turns import Turns, TurnStore
from tests.side_registry.runs import make_run, upload

MakeRun = Callable[..., Path]

AT_ONCE = timedelta(seconds=-5)
"""A grace period that even what is written now has outlived."""

ORDER = st.lists(st.integers(0, 5), max_size=100)
"""Whose request is next."""


def orphan(registry: Registry, age_s: float, data: bytes = b"left behind") -> str:
    """A file that no version refers to."""
    digest = Blobs(registry.store).add(data)
    path, then = Path(registry.url, "blobs/sha256", digest), time.time() - age_s
    os.utime(path, (then, then))
    return f"blobs/sha256/{digest}"


def contents(registry: Registry) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(registry.url).rglob("*") if path.is_file()}


def gone(registry: Registry, **how: object) -> list[str]:
    done = collect(Store.open(registry.url), delete=True, **how)  # type: ignore[arg-type]
    return [entry.path for entry in done.removed]


class TestWhatGoes:
    def test_only_what_is_old_and_unused(self, local: Registry, run: MakeRun):
        local.publish(run(1))
        for path in Path(local.url, "blobs/sha256").iterdir():
            os.utime(path, (0, 0))
        old = orphan(local, GRACE.total_seconds() + 60)
        young = orphan(local, GRACE.total_seconds() - 60, b"still on its way")
        assert gone(local) == [old]
        assert local.store.find(young)
        assert verify(local.store).sound

    def test_a_dry_run_says_the_same_and_changes_nothing(self, local: Registry, run: MakeRun):
        local.publish(run(1))
        before = contents(local)
        old = orphan(local, 1e7)
        with_orphan = contents(local)
        done = collect(Store.open(local.url))
        assert ([entry.path for entry in done.removed], done.deleted) == ([old], False)
        assert contents(local) == with_orphan
        assert gone(local) == [old]
        assert contents(local) == before
        assert gone(local) == []

    def test_strangers_stay(self, local: Registry):
        strangers = ["blobs/README", "blobs/sha256/notes.txt", "mine/too"]
        for path in strangers:
            local.store.put_new(path, b"?")
        assert gone(local, grace=AT_ONCE) == []
        assert all(local.store.find(path) for path in strangers)

    def test_retired_versions_keep_their_files_unless_told(self, local: Registry, run: MakeRun, tmp_path: Path):
        local.publish(run(1))
        local.publish(run(2), alias="production")
        local.retire("sst2", 1)
        assert gone(local, grace=AT_ONCE) == []
        [file] = local.manifest("sst2", 1).files.values()
        assert gone(local, grace=AT_ONCE, retired=True) == [f"blobs/sha256/{file.sha256}"]
        assert verify(local.store).sound
        assert local.manifest("sst2", 1).task == "sst2"
        again = local.publish(run(1))
        copy = local.download("sst2", again.version, tmp_path / "x")
        assert copy.side_network.read_bytes() == (run(1) / SIDE_NETWORK).read_bytes()

    def test_files_that_a_live_version_shares_with_a_retired_one_stay(self, local: Registry, tmp_path: Path):
        local.publish(make_run(tmp_path / "a", payload=b"same", run_id="a"))
        local.publish(make_run(tmp_path / "b", payload=b"same", run_id="b"), alias="production")
        local.retire("sst2", 1)
        assert gone(local, grace=AT_ONCE, retired=True) == []

    def test_drafts_of_killed_writers_go(self, local: Registry, run: MakeRun):
        local.publish(run(1))
        for path in ("blobs/sha256/" + "a" * 64 + "#1", "log/00000000000000000002.json#7"):
            Path(local.url, path).write_bytes(b"hal")
        assert len(gone(local, grace=AT_ONCE)) == 2
        assert local.store.drafts() == []

    def test_a_draft_may_be_finished_meanwhile(self, local: Registry, monkeypatch: pytest.MonkeyPatch):
        local.store.put_new("blobs/README", b"")
        for digit in "ab":
            Path(local.url, f"blobs/{digit}#1").write_bytes(b"hal")
        is_file = Path.is_file

        def vanishing(path: Path) -> bool:
            found = is_file(path)
            if path.name == "a#1":
                path.unlink()
            return found

        monkeypatch.setattr(Path, "is_file", vanishing)
        assert gone(local, grace=AT_ONCE) == ["blobs/b#1"]

    def test_a_grace_period_may_be_longer_than_time(self, local: Registry):
        old = orphan(local, 1e9)
        assert gone(local, grace=timedelta.max) == []
        assert local.store.find(old)

    def test_the_clock_of_a_stopped_collection_goes(self, local: Registry):
        for name, age_s in (("old", 1e6), ("now", 0)):
            local.store.put_new(f"trash/clock-{name}", b"")
            then = time.time() - age_s
            os.utime(Path(local.url, f"trash/clock-{name}"), (then, then))
        gone(local, grace=timedelta(hours=1))
        assert local.store.list("trash") == ["trash/clock-now"]


class TestWhatIsNotKnown:
    def test_a_damaged_manifest_stops_it(self, local: Registry, run: MakeRun):
        local.publish(run(1))
        old = orphan(local, 1e7)
        Path(local.url, "blobs/sha256", local.state().task("sst2").entry(1).manifest_sha256).write_bytes(b"{}")
        with pytest.raises(CorruptBlob, match="publish the run"):
            gone(local)
        assert local.store.find(old)

    def test_an_unreadable_log_stops_it(self, local: Registry, run: MakeRun):
        local.publish(run(1))
        old = orphan(local, 1e7)
        local.store.overwrite(log_path(2), b"?")
        with pytest.raises(UnreadableCommit):
            gone(local)
        assert local.store.find(old)

    def test_a_store_that_fails_is_no_damaged_manifest(
        self, local: Registry, run: MakeRun, monkeypatch: pytest.MonkeyPatch
    ):
        """Not even that of a retired version, whose files would go."""
        local.publish(run(1))
        local.publish(run(2), alias="production")
        local.retire("sst2", 1)
        store = Store.open(local.url)
        read = store.read

        def failing(path: str, limit: int) -> bytes | None:
            if path.startswith("blobs"):
                raise StoreFailed(store.url, path, "gone")
            return read(path, limit)

        monkeypatch.setattr(store, "read", failing)
        with pytest.raises(StoreFailed):
            collect(store, grace=AT_ONCE, delete=True)
        assert verify(local.store).sound


class TestRaces:
    def test_a_stopped_collection_is_undone_by_the_next(self, local: Registry, run: MakeRun):
        """It had moved files, and then somebody committed them, and nobody looked."""
        local.publish(run(1))
        for path in local.store.list("blobs"):
            local.store.move(path, "trash/20260101T000000Z-x/" + path.rpartition("/")[2])
        assert not verify(local.store).sound
        done = collect(Store.open(local.url), delete=True)
        assert len(done.restored) == 2
        assert verify(local.store).findings == ()

    def test_what_was_published_again_is_young(self, local: Registry, run: MakeRun):
        digest = upload(local.store, run(1))
        os.utime(Path(local.url, "blobs/sha256", digest), (0, 0))
        upload(local.store, run(1))
        assert gone(local) == []

    @settings(max_examples=60, deadline=None)
    @given(order=ORDER)
    @example(order=[0] * 12 + [1] * 3 + [0] * 3 + [1] * 3)  # committed between the return of manifests and of files
    def test_no_order_of_requests_loses_what_was_published(self, order: list[int], artifact: Path):
        check_race(order, artifact, collectors=1)

    @pytest.mark.slow
    @pytest.mark.timeout(600)
    @settings(max_examples=500, deadline=None)
    @given(order=ORDER, collectors=st.integers(1, 2))
    def test_no_order_of_requests_loses_what_was_published_at_length(
        self, order: list[int], artifact: Path, collectors: int
    ):
        check_race(order, artifact, collectors)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(autouse=True)
def one_request_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "THREADS", 1)
    monkeypatch.setattr(log, "READ_AHEAD", 1)  # a store that answers slowly is read ahead of


def check_race(order: list[int], artifact: Path, collectors: int) -> None:
    """A publisher died before its commit, long ago. Its run is published again while collections run."""
    objects, turns = MemoryStore(), Turns()
    upload(Registry.open(Store("memory://", objects), create=True).store, artifact)
    actors: dict[str, Callable[[], object]] = {
        f"collector {number}": lambda number=number: collect(
            TurnStore(turns, f"collector {number}", objects), grace=AT_ONCE, delete=True
        )
        for number in range(collectors)
    }
    actors["publisher"] = lambda: Registry.open(TurnStore(turns, "publisher", objects)).publish(artifact)
    results = turns.play(actors, order)
    failed = {name: result for name, result in results.items() if isinstance(result, Exception)}
    if collectors > 1:  # one may stop at what the other has thrown away and its publisher brings back
        failed = {name: error for name, error in failed.items() if not isinstance(error, CorruptBlob)}
        collect(Store("memory://", objects), grace=GRACE, delete=True)
    assert failed == {}
    assert not isinstance(results["publisher"], Exception)
    assert [finding for finding in verify(Store("memory://", objects)).findings if finding.level == "damage"] == []
