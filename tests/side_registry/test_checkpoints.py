"""Checkpoints of states with routes, of other programs, and of very many tasks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import Bounds, Registry, Route, State, Store
from side_registry.checkpoints import SCHEMA, Checkpoint, checkpoint_paths, load_checkpoint, save_checkpoint
from side_registry.log import Log
from side_registry.state import TaskState, VersionState

MakeRun = Callable[..., Path]


@pytest.fixture
def routed(local: Registry, run: MakeRun) -> Registry:
    for number in (1, 2, 3):
        local.publish(run(number))
    local.set_route("sst2", "production", Route(shares={2: 500}, shadows=(3,), bounds=Bounds(error_rate=0.01)))
    return local


def test_routes_come_back(routed: Registry):
    save_checkpoint(routed.store, routed.state())
    loaded = load_checkpoint(routed.store, Log(routed.store))
    assert loaded == routed.state()
    assert loaded.task("sst2").route("production").shares == {2: 500}
    assert loaded.task("sst2").routed == {"production": 4}


def test_a_checkpoint_of_another_schema_is_folded_again(routed: Registry):
    """One that knew no routes would lead to a state without them."""
    store = routed.store
    document = json.loads(Checkpoint(state=routed.state()).to_json())
    for task in document["state"]["tasks"].values():
        del task["routes"], task["routed"]
    keep(store, document | {"schema_version": SCHEMA - 1})
    assert load_checkpoint(store, Log(store)) == State()
    assert Registry.open(routed.url).state() == routed.state()


def test_many_tasks_come_back_whole(local: Registry, run: MakeRun):
    local.publish(run(1))
    state = many(500, local.state())
    save_checkpoint(local.store, state)
    assert load_checkpoint(local.store, Log(local.store)) == state


def test_writers_that_keep_at_once_leave_the_newest(local: Registry, run: MakeRun):
    local.publish(run(1))
    for generation in range(1, 9):
        save_checkpoint(local.store, State(generation=generation, head=str(generation)))
    assert [int(path[12:32]) for path in checkpoint_paths(local.store)] == [8, 7, 6]


def keep(store: Store, document: dict) -> None:
    import hashlib

    data = json.dumps(document).encode()
    generation = document["state"]["generation"]
    store.put_new(f"checkpoints/{generation:020d}-{hashlib.sha256(data).hexdigest()}.json", data)


def many(tasks: int, state: State) -> State:
    """So many tasks of three versions, said to be what the log adds up to."""
    named = {f"task-{number}": task(f"task-{number}") for number in range(tasks)}
    return State(generation=state.generation, head=state.head, tasks=named)


def task(name: str) -> TaskState:
    versions = {number: version(number) for number in (1, 2, 3)}
    return TaskState(
        name=name, versions=versions, aliases={"production": (1, 3)}, routes={"production": Route(shares={2: 1})}
    )


def version(number: int) -> VersionState:
    return VersionState(
        version=number,
        manifest_sha256="a" * 64,
        kind="text",
        backbone="sha256:b",
        run_id=f"run-{number}",
        published_at="2026-01-01T00:00:00.000Z",
        author="ada",
        message="",
        generation=number,
    )
