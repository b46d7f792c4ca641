"""A log that is restored or made anew under programs that follow it: they say so, and write nothing beside it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import LogReplaced, Registry, UnreadableCommit
from side_registry.log import log_path

MakeRun = Callable[..., Path]


@pytest.fixture
def follower(local: Registry, run: MakeRun) -> Registry:
    """Another program, which has read three commits of `local`."""
    for number in range(1, 4):
        local.publish(run(number))
    opened = Registry.open(local.url)
    assert opened.state().generation == 3
    return opened


def cut(registry: Registry, generation: int) -> None:
    """As a backup from then."""
    for path in sorted(Path(registry.url, "log").iterdir())[generation:]:
        path.unlink()


def make_anew(registry: Registry, run: MakeRun, count: int) -> Registry:
    shutil.rmtree(registry.url)
    anew = Registry.open(registry.url, create=True)
    for number in range(count):
        anew.publish(run(10 + number))
    return anew


def test_each_commit_names_the_one_before(local: Registry, run: MakeRun):
    local.publish(run(1))
    local.publish(run(2))
    first, second = local.history()
    assert (first.parent, second.parent) == ("", first.id)


@pytest.mark.parametrize("kept", [0, 2])
def test_nothing_is_written_to_a_log_that_was_restored(follower: Registry, kept: int):
    cut(follower, kept)
    with pytest.raises(LogReplaced, match="its commit 3 is gone or another; if the registry was restored"):
        follower.set_alias("sst2", "production", 2)
    assert len(list(Path(follower.url, "log").iterdir())) == kept
    assert follower.state(refresh=False).generation == 3
    assert Registry.open(follower.url).state().generation == kept


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_nothing_is_written_to_a_log_that_was_made_anew(follower: Registry, run: MakeRun, count: int):
    anew = make_anew(follower, run, count)
    with pytest.raises(LogReplaced):
        follower.set_alias("sst2", "production", 2)
    assert anew.state().generation == count
    assert follower.state(refresh=False).task("sst2").last_version == 3


def test_a_reader_does_not_fold_another_log_onto_its_own(follower: Registry, run: MakeRun):
    anew = make_anew(follower, run, 4)
    with pytest.raises(LogReplaced):
        follower.state()
    assert follower.state(refresh=False).generation == 3
    assert Registry.open(anew.url).state().generation == 4


def test_a_reader_to_whom_nothing_comes_looks_back(
    follower: Registry, local: Registry, monkeypatch: pytest.MonkeyPatch
):
    last = Path(local.url, log_path(3))
    data = last.read_bytes()
    cut(follower, 2)
    assert follower.state().generation == 3  # not at every poll
    monkeypatch.setattr("side_registry.registry.CHECK_HEAD_S", 0.0)
    for _ in range(2):
        with pytest.raises(LogReplaced):
            follower.state()
    last.write_bytes(data)
    assert follower.state().generation == 3


def test_commits_of_a_program_that_named_none_follow(follower: Registry):
    for path in Path(follower.url, "log").iterdir():
        document = json.loads(path.read_bytes())
        del document["parent"]
        path.write_text(json.dumps(document))
    reopened = Registry.open(follower.url)
    assert reopened.state() == follower.state()
    reopened.set_alias("sst2", "production", 2)
    assert follower.state().generation == 4


def test_a_commit_of_another_log_does_not_follow(follower: Registry):
    path = Path(follower.url, log_path(3))
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"parent": "another"}))
    with pytest.raises(UnreadableCommit, match="it does not follow this log's commit 2"):
        Registry.open(follower.url).state()
