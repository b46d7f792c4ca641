"""What a request finds in the pool, and how a server's placement follows the registry: pure values, no threads."""

from dataclasses import replace

import pytest

from serving.errors import NotLoaded
from serving.versions.placement import add, load_order, place, serve
from serving.versions.pool import Failure, PoolState, SidePool
from side_registry import TaskState, UnknownAlias, UnknownTask, UnknownVersion, VersionState
from side_registry.route import Route
from tests.serving.kit import empty_resident


def task_state(
    versions: int,
    aliases: dict[str, tuple[int, ...]] | None = None,
    retired: tuple[int, ...] = (),
    name: str = "sst2",
    routes: dict[str, Route] | None = None,
) -> TaskState:
    entries = {number: _version(number, number in retired) for number in range(1, versions + 1)}
    routed = dict.fromkeys(routes or {}, versions + 1)
    return TaskState(name=name, versions=entries, aliases=aliases or {}, routes=routes or {}, routed=routed)


def _version(number: int, retired: bool) -> VersionState:
    return VersionState(
        version=number,
        manifest_sha256="0" * 64,
        kind="classification",
        backbone="sha256:0",
        run_id="",
        published_at="",
        author="",
        message="",
        generation=number,
        retired=retired,
    )


def pool_state(task: TaskState, *loaded: int, failed: tuple[int, ...] = ()) -> PoolState:
    state = PoolState(
        generation=1,
        wanted=1,
        tasks={task.name: task},
        failed={
            (task.name, v): Failure(reason="X", why="a broken wheel", attempts=1, transient=False, at=0) for v in failed
        },
    )
    for version in loaded:
        state = add(state, empty_resident(task.name, version))
    return state


def test_an_alias_a_version_and_the_default_resolve() -> None:
    state = pool_state(task_state(3, {"production": (1, 2), "canary": (3,)}), 1, 2, 3)
    assert state.resolve("sst2").version == 2
    assert state.resolve("sst2", alias="canary").version == 3
    assert state.resolve("sst2", version=1).version == 1


def test_tasks_and_versions_not_in_the_registry_are_unknown() -> None:
    state = pool_state(task_state(2, {"production": (2,)}, retired=(1,)), 2)
    with pytest.raises(UnknownTask):
        state.resolve("sst3")
    with pytest.raises(UnknownAlias):
        state.resolve("sst2", alias="canary")
    with pytest.raises(UnknownVersion, match="no version 9"):
        state.resolve("sst2", version=9)
    with pytest.raises(UnknownVersion, match="retired"):
        state.resolve("sst2", version=1)


def test_a_version_that_did_not_load_has_its_error() -> None:
    state = pool_state(task_state(2, {"production": (1,)}), failed=(1,))
    with pytest.raises(NotLoaded, match="a broken wheel"):
        state.resolve("sst2")
    with pytest.raises(NotLoaded, match="a broken wheel"):
        state.resolve("sst2", version=1)
    with pytest.raises(NotLoaded, match="still loading"):
        state.resolve("sst2", version=2)


def test_a_new_pool_knows_no_tasks() -> None:
    pool = SidePool()
    assert pool.snapshot().generation == -1
    with pytest.raises(UnknownTask):
        pool.resolve("sst2")


def test_a_reader_keeps_the_state_it_took() -> None:
    pool, old = SidePool(), pool_state(task_state(1, {"production": (1,)}), 1)
    pool.replace(old)
    held = pool.snapshot()
    assert pool.replace(PoolState(generation=2, wanted=2)) is old
    assert held.resolve("sst2").version == 1
    with pytest.raises(UnknownTask):
        pool.resolve("sst2")


@pytest.mark.parametrize(
    ("stack", "loaded", "current", "served"),
    [
        ((1,), {1}, None, 1),
        ((1, 2), {1, 2}, 1, 2),
        ((1, 2), {1}, 1, 1),  # 2 is still loading, or failed
        ((1, 2, 3), {1, 3}, 3, 3),
        ((1, 2), {1, 3}, 3, 1),  # rolled back from 3 to 2, which is not loaded: the next in the stack
        ((2,), {3}, 3, 3),  # rolled back from 3 to 2, which is not loaded: the last good one stays
        ((2,), set(), None, None),
        ((5, 2), {4, 5}, 5, 2),  # 5 is retired, see below
    ],
)
def test_an_alias_is_served_by_the_newest_loaded_version_of_its_stack(
    stack: tuple[int, ...], loaded: set[int], current: int | None, served: int | None
) -> None:
    task = task_state(5, {"production": stack}, retired=(5,))
    if served == 2 and 2 not in loaded:
        served = 5  # retired, but it serves, and nothing else can
    found = serve(task, loaded, {"production": current} if current else {})
    assert found == ({"production": served} if served else {})


def test_a_retired_version_is_removed_once_no_alias_uses_it() -> None:
    before = task_state(2, {"production": (1, 2)})
    state = pool_state(before, 1, 2)
    after = task_state(2, {"production": (1, 2)}, retired=(1,))
    assert set(place(state, "sst2", after, before).residents) == {("sst2", 2)}


def test_a_retired_version_stays_while_it_is_the_last_good_one() -> None:
    before = task_state(2, {"production": (1,)})
    state = pool_state(before, 1)
    after = task_state(2, {"production": (1, 2)}, retired=(1,))  # promoted to 2, which is not loaded yet
    placed = place(state, "sst2", after, before)
    assert placed.aliases == {("sst2", "production"): 1}
    assert set(placed.residents) == {("sst2", 1)}

    swapped = add(replace(placed, tasks={"sst2": after}), empty_resident("sst2", 2))
    assert swapped.aliases == {("sst2", "production"): 2}
    assert set(swapped.residents) == {("sst2", 2)}


def test_an_alias_moves_directly_to_its_version_without_a_third_one() -> None:
    """Though what it comes from is retired meanwhile. One that fails to load leaves the choice to the stack."""
    before = task_state(3, {"production": (1, 2, 3)})
    after = task_state(3, {"production": (1, 2, 3)}, retired=(2,))
    state = pool_state(before, 2, 1)
    assert place(state, "sst2", after, before).aliases == {("sst2", "production"): 2}
    failed = replace(state, failed=pool_state(before, failed=(3,)).failed)
    assert place(failed, "sst2", after, before).aliases == {("sst2", "production"): 1}


def test_a_deleted_task_is_removed_completely() -> None:
    task = task_state(3, {"production": (1,)})
    gone = place(pool_state(task, 1, 2, failed=(3,)), "sst2", None, task)
    assert (gone.aliases, gone.residents, gone.failed) == ({}, {}, {})


def test_unchanged_parts_of_the_state_are_not_copied() -> None:
    task = task_state(1, {"production": (1,)})
    state = pool_state(task, 1)
    placed = place(state, "sst2", task, task)
    assert placed.residents is state.residents
    assert placed.aliases is state.aliases


def test_versions_with_an_alias_load_first() -> None:
    task = task_state(6, {"production": (2, 4), "canary": (5,)})
    assert [version for _, version in load_order(task, range(1, 7))] == [5, 4, 2, 6, 3, 1]
