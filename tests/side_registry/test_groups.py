"""Groups of tasks: what a change makes of them, what is refused, and that every reader of the log has the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import InvalidGroup, InvalidName, NoEarlierGroup, Registry, UnknownGroup, VersionInUse, fold
from side_registry.checkpoints import load_checkpoint
from side_registry.errors import RegistryError
from side_registry.log import Log
from tests.side_registry.runs import make_run


@pytest.fixture
def registry(local: Registry, tmp_path: Path) -> Registry:
    """Tasks sst2 (versions 1 and 2, production 1) and rte (version 1)."""
    for task, payload in (("sst2", b"1"), ("sst2", b"2"), ("rte", b"1")):
        local.publish(make_run(tmp_path / f"{task}{payload.decode()}", task, payload, f"run-{task}-{payload.decode()}"))
    return local


def members(registry: Registry, group: str = "guard") -> tuple[str, ...]:
    return registry.state().group(group).current.members


def test_each_change_is_a_version_and_one_commit(registry: Registry) -> None:
    before = registry.state().generation
    first = registry.set_group("guard", ["sst2:1", "rte"])
    second = registry.set_group("guard", ["sst2:2", "rte@production"], message="better")
    assert (first.version, first.version_from, first.generation) == (1, 0, before + 1)
    assert (second.version, second.version_from, second.generation) == (2, 1, before + 2)
    assert members(registry) == ("sst2:2", "rte@production")
    assert registry.set_group("guard", ["sst2:2", "rte@production"]) == second.__class__(
        group="guard", version=2, version_from=2, members=("sst2:2", "rte@production"), generation=before + 2
    )


def test_a_rollback_gives_back_what_the_version_before_named_and_moves_no_alias(registry: Registry) -> None:
    registry.set_group("guard", ["sst2:1", "rte:1"])
    registry.set_group("guard", ["sst2:2", "rte"])
    registry.set_alias("sst2", "production", 2)
    rolled = registry.rollback_group("guard")
    assert (rolled.version, rolled.version_from, rolled.members) == (1, 2, ("sst2:1", "rte:1"))
    assert members(registry) == ("sst2:1", "rte:1")
    assert registry.state().task("sst2").serving == {"production": 2}
    assert registry.set_group("guard", ["rte"]).version == 3
    with pytest.raises(NoEarlierGroup, match="is version 3 and has no earlier version 2 whose tasks can all be used"):
        registry.rollback_group("guard", to=2)
    assert registry.rollback_group("guard", to=1).version == 1


def test_a_rollback_skips_versions_whose_tasks_are_gone(registry: Registry) -> None:
    registry.set_group("guard", ["rte"])
    registry.set_group("guard", ["sst2:2"])
    registry.set_group("guard", ["sst2"])
    registry.retire("sst2", 2)
    assert registry.rollback_group("guard").members == ("rte",)
    with pytest.raises(NoEarlierGroup, match="sidecast group set guard TASK"):
        registry.rollback_group("guard")


def test_a_deleted_group_is_unknown_and_counts_on(registry: Registry) -> None:
    registry.set_group("guard", ["rte"])
    registry.delete_group("guard")
    for verb in (registry.delete_group, registry.rollback_group):
        with pytest.raises(UnknownGroup, match="there is no group 'guard'"):
            verb("guard")
    assert registry.state().live_groups == {}
    assert registry.set_group("guard", ["sst2"]).version == 2
    with pytest.raises(UnknownGroup, match="did you mean 'guard'"):
        registry.state().group("gard")


@pytest.mark.parametrize(
    ("name", "tasks", "error", "why"),
    [
        ("guard", [], InvalidGroup, "it would have no task"),
        ("guard", ["sst2", "rte", "sst2:2"], InvalidGroup, "it would have task 'sst2' twice"),
        ("guard", ["rte"] * 1001, InvalidGroup, "at most 1000"),
        ("guard", ["sst2", "nope"], RegistryError, "there is no task 'nope'"),
        ("guard", ["sst2:7"], RegistryError, "has no version 7"),
        ("guard", ["sst2@canary"], RegistryError, "has no alias 'canary'"),
        ("guard", ["sst2:x"], InvalidName, "no valid reference"),
        ("group/x", ["sst2"], InvalidName, "no valid group name"),
    ],
)
def test_what_cannot_be_a_group_changes_nothing(
    registry: Registry, name: str, tasks: list[str], error: type[Exception], why: str
) -> None:
    before = registry.state().generation
    with pytest.raises(error, match=why):
        registry.set_group(name, tasks)
    assert registry.state().generation == before


def test_a_version_that_a_group_names_is_not_retired(registry: Registry) -> None:
    registry.set_group("guard", ["sst2:2", "rte"])
    with pytest.raises(VersionInUse, match="version 2 of task 'sst2' is in group guard; set that without it first"):
        registry.retire("sst2", 2)
    registry.set_group("guard", ["rte"])
    registry.retire("sst2", 2)


def test_the_history_of_a_group_has_its_changes_alone_and_a_tasks_has_none_of_them(registry: Registry) -> None:
    registry.set_group("guard", ["sst2", "rte"], author="ann", message="begin")
    registry.set_group("other", ["rte"])
    registry.delete_group("guard")
    commits = registry.history(group="guard")
    assert [[action.type for action in commit.actions] for commit in commits] == [["set_group"], ["delete_group"]]
    assert (commits[0].author, commits[0].message, commits[0].groups, commits[0].tasks) == (
        "ann",
        "begin",
        ("guard",),
        (),
    )
    assert [action.type for commit in registry.history("rte") for action in commit.actions] == ["publish", "set_alias"]
    with pytest.raises(UnknownGroup):
        registry.history(group="nope")


def test_a_checkpoint_holds_groups_and_the_log_leads_to_the_same(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Path]
) -> None:
    monkeypatch.setattr("side_registry.registry.EVERY", 1)
    registry.set_group("guard", ["sst2:1", "rte"])
    registry.set_group("guard", ["sst2:2"])
    registry.set_group("gone", ["rte"])
    registry.delete_group("gone")
    state = registry.state()
    assert load_checkpoint(registry.store, Log(registry.store)) == state
    assert fold(Log(registry.store).after(0)) == state
