"""Many writers, one registry: every version lands exactly once, in order."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from side_registry import Commit, Contended, Publish, Registry
from side_registry.log import Log, log_path
from side_registry.registry import ATTEMPTS
from tests.side_registry.races.turns import before_next_commit
from tests.side_registry.runs import make_run


def published_versions(registry: Registry, task: str) -> list[int]:
    """In the log's order."""
    actions = [action for commit in registry.history() for action in commit.actions]
    return [action.version for action in actions if isinstance(action, Publish) and action.task == task]


def in_threads(jobs: Sequence[Callable[[], object]]) -> None:
    failures: list[Exception] = []

    def guarded(job: Callable[[], object]) -> None:
        try:
            job()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_four_threads_publish_through_one_registry_object(tmp_path: Path):
    url = tmp_path / "registry"
    registry = Registry.open(url, create=True)
    runs = [[make_run(tmp_path / f"{t}-{n}", "sst2", b"%d %d" % (t, n)) for n in range(6)] for t in range(4)]
    numbers: list[int] = []

    def publish(folders: list[Path]) -> None:
        numbers.extend(registry.publish(folder, alias="canary").version for folder in folders)

    in_threads([lambda folders=folders: publish(folders) for folders in runs])
    assert sorted(numbers) == list(range(1, 25))
    assert published_versions(registry, "sst2") == list(range(1, 25))
    state = Registry.open(url).state()
    assert state == registry.state()
    assert state.task("sst2").serving == {"canary": 24}
    assert state.generation == 24


def test_the_same_run_published_by_all_is_one_version(tmp_path: Path):
    registry = Registry.open(tmp_path / "registry", create=True)
    folder = make_run(tmp_path / "run")
    in_threads([lambda: registry.publish(folder)] * 4)
    assert published_versions(registry, "sst2") == [1]
    assert registry.state().generation == 1


def test_a_loser_decides_again(local: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Somebody else publishes between our look and our commit: we get the next number, and production stays theirs."""
    rival, ours, theirs = Registry.open(local.url), make_run(tmp_path / "a"), make_run(tmp_path / "b", payload=b"other")
    before_next_commit(monkeypatch, local, lambda: rival.publish(theirs))
    published = local.publish(ours)
    assert (published.version, published.generation, published.aliases) == (2, 2, {})


def test_a_loser_reads_only_the_winner(local: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    local.publish(make_run(tmp_path / "a"))
    local.publish(make_run(tmp_path / "b", payload=b"other"))
    rival, asked, read = Registry.open(local.url), list[str](), local.store.read
    rival.state()
    before_next_commit(monkeypatch, local, lambda: rival.set_alias("sst2", "beta", 1))
    monkeypatch.setattr(local.store, "read", lambda path, limit: asked.append(path) or read(path, limit))
    assert local.set_alias("sst2", "canary", 2) == 4
    # the end of the log, whether it is still the same log, then who was faster
    assert asked == [log_path(3), log_path(2), log_path(3)]
    assert rival.state() == local.state()


def test_a_writer_that_loses_for_a_moment_does_not_give_up(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    registry.publish(make_run(tmp_path / "a"))
    append, lost = Log.append, []

    def append_at_last(log: Log, commit: Commit) -> Commit | None:
        lost.append(commit)
        return append(log, commit) if len(lost) > 3 * ATTEMPTS else None

    monkeypatch.setattr(Log, "append", append_at_last)
    monkeypatch.setattr("side_registry.registry.LONGEST_PAUSE_S", 0)
    assert registry.set_alias("sst2", "canary", 1) == 2


def test_a_writer_that_always_loses_says_so(local: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Log, "append", lambda *_: None)
    monkeypatch.setattr("side_registry.registry.PATIENCE_S", 0)
    with pytest.raises(Contended, match="64 times"):
        local.publish(make_run(tmp_path / "run"))
