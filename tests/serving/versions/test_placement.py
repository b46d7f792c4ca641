"""What a server holds, serves and splits, as the registry's log grows and versions load or fail: pure values."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serving.versions.placement import add, follow, load_order, place, serve
from serving.versions.pool import Failure, PoolState
from side_registry import NothingToRollBack, State, TaskState, VersionInUse, decisions
from side_registry.errors import InvalidRoute, RollbackUnclear
from side_registry.log import Action, Commit, Publish
from side_registry.route import Bounds, Route
from side_registry.state import fold
from tests.serving.kit import empty_resident
from tests.serving.versions.test_pool import task_state

HALF = Route(shares={2: 2500, 3: 2500}, shadows=(4,), bounds=Bounds(error_rate=0.1))


@pytest.mark.parametrize(
    ("loaded", "followed"),
    [
        ({1, 2, 3, 4}, HALF),
        ({1, 3, 4}, Route(shares={3: 2500}, shadows=(4,), bounds=HALF.bounds)),
        ({1, 2, 3}, Route(shares=HALF.shares, bounds=HALF.bounds)),
        ({1, 4}, Route(shadows=(4,))),
        ({1}, None),
    ],
)
def test_a_route_uses_the_loaded_versions(loaded: set[int], followed: Route | None) -> None:
    task = task_state(4, {"production": (1,)}, routes={"production": HALF})
    assert follow(task, "production", 1, loaded) == followed


def test_a_route_is_not_followed_while_another_version_stands_in() -> None:
    task = task_state(4, {"production": (4, 1)}, routes={"production": HALF.model_copy(update={"shadows": ()})})
    state = _placed(task, 2, 3, 4)
    assert state.aliases == {("sst2", "production"): 4}
    assert state.routes == {}
    assert {state.resolve("sst2", key=f"{number}").version for number in range(100)} == {4}
    assert add(state, empty_resident("sst2", 1)).routes[("sst2", "production")].shares == HALF.shares


def test_while_the_version_of_an_alias_loads_the_current_one_goes_on_and_no_third_answers() -> None:
    task = task_state(3, {"production": (1, 2, 3)})
    assert serve(task, {1, 2}, {"production": 1}) == {"production": 1}
    assert serve(task, {1, 2}, {"production": 1}, failed={3}) == {"production": 2}
    assert serve(task, {1, 2, 3}, {"production": 1}) == {"production": 3}


def test_a_retired_version_does_not_stand_in() -> None:
    task = task_state(3, {"production": (1, 2, 3)}, retired=(2,))
    assert serve(task, {1, 2}, {}, failed={3}) == {"production": 1}


def test_a_version_that_is_retired_stays_resident_while_it_serves() -> None:
    before = task_state(2, {"production": (1,)})
    state = _placed(before, 1)
    task = task_state(2, {"production": (1, 2)}, retired=(1,))
    state = place(replace(state, tasks={"sst2": task}), "sst2", task, before)
    assert (state.aliases, set(state.residents)) == ({("sst2", "production"): 1}, {("sst2", 1)})
    state = add(state, empty_resident("sst2", 2))
    assert (state.aliases, set(state.residents)) == ({("sst2", "production"): 2}, {("sst2", 2)})


def test_versions_that_routes_name_load_as_urgently_as_those_of_aliases() -> None:
    route = Route(shares={2: 500}, shadows=(5,))
    task = task_state(6, {"production": (3, 1)}, routes={"production": route})
    urgencies = load_order(task, range(1, 7))
    assert urgencies == [(0, 5), (0, 2), (0, 1), (1, 3), (2, 6), (2, 4)]


def test_changes_outside_a_route_do_not_copy_the_routes() -> None:
    task = task_state(4, {"production": (1,)}, routes={"production": HALF})
    state = _placed(task, 1, 2, 3, 4)
    assert place(state, "sst2", task, task).routes is state.routes


def test_a_deleted_task_leaves_no_route() -> None:
    task = task_state(4, {"production": (1,)}, routes={"production": HALF})
    state = _placed(task, 1, 2, 3, 4)
    gone = place(replace(state, tasks={}), "sst2", None, task)
    assert (gone.routes, gone.aliases, gone.residents) == ({}, {}, {})


def _placed(task: TaskState, *loaded: int) -> PoolState:
    state = PoolState(generation=1, wanted=1, tasks={task.name: task})
    for version in loaded:
        state = add(state, empty_resident(task.name, version))
    return state


ALIASES = st.sampled_from(["production", "production", "canary"])
PICK = st.integers(0, 9)
KEYS = tuple(f"caller {number}" for number in range(5))


class Placing(RuleBasedStateMachine):
    """One task, whose log the server reads when it may: whatever is committed, loaded or broken in between."""

    @initialize(versions=st.integers(2, 5))
    def begin(self, versions: int) -> None:
        self.registry, self.pool = State(), PoolState()
        for _ in range(versions):
            self.publish("production" if not self.registry.tasks else None)
        self.look()
        self.load(0)

    @property
    def live(self) -> Sequence[int]:
        task = self.registry.live.get("t")
        return task.live if task else ()

    def commit(self, actions: Sequence[Action]) -> None:
        if actions:
            generation = self.registry.generation + 1
            commit = Commit(generation=generation, id=str(generation), time="", actions=tuple(actions))
            self.registry = fold([commit], self.registry)

    def decide(self, verb: Callable[[], Sequence[Action]]) -> None:
        with contextlib.suppress(NothingToRollBack, RollbackUnclear, VersionInUse, InvalidRoute):
            self.commit(verb())

    @rule(alias=st.none() | ALIASES)
    def publish(self, alias: str | None) -> None:
        version = self.registry.tasks["t"].last_version + 1 if self.registry.tasks else 1
        self.commit([Publish(task="t", version=version, manifest_sha256="0" * 64, kind="text", backbone="b")])
        if alias:
            self.commit(decisions.set_alias(self.registry, "t", alias, version))

    @rule(alias=ALIASES, pick=PICK)
    def promote(self, alias: str, pick: int) -> None:
        if live := self.live:
            self.commit(decisions.set_alias(self.registry, "t", alias, live[pick % len(live)]))

    @rule(
        alias=ALIASES,
        shares=st.dictionaries(PICK, st.integers(1, 3000), max_size=3),
        shadows=st.lists(PICK, max_size=2),
        bounds=st.none() | st.sampled_from([Bounds(disagreement=0.1), Bounds(error_rate=0.1)]),
    )
    def split(self, alias: str, shares: dict[int, int], shadows: list[int], bounds: Bounds | None) -> None:
        live = self.live
        if not live or alias not in self.registry.task("t").aliases:
            return
        named = {live[pick % len(live)]: share for pick, share in shares.items()}
        shadows = dict.fromkeys(live[pick % len(live)] for pick in shadows)
        route = Route(
            shares=named, shadows=tuple(v for v in shadows if v not in named), bounds=bounds if named else None
        )
        self.decide(lambda: decisions.set_route(self.registry, "t", alias, route, None))

    @rule(alias=ALIASES)
    def roll_back(self, alias: str) -> None:
        if alias in self.registry.tasks["t"].aliases:
            self.decide(lambda: decisions.rollback(self.registry, "t", alias, None)[0])

    @rule(pick=PICK)
    def retire(self, pick: int) -> None:
        if live := self.live:
            self.decide(lambda: decisions.retire(self.registry, "t", live[pick % len(live)]))

    @rule(dice=st.integers(0, 9))
    def delete(self, dice: int) -> None:
        if dice == 0 and self.live:
            self.commit(decisions.delete_task(self.registry, "t"))

    @rule()
    def look(self) -> None:
        """As the reconciler adopts a state."""
        before, tasks = self.pool, self.registry.live
        after = replace(before, wanted=self.registry.generation, tasks=tasks)
        self.pool = place(after, "t", tasks.get("t"), before.tasks.get("t"))

    @rule(pick=PICK)
    def load(self, pick: int) -> None:
        if missing := self.missing():
            self.pool = add(self.pool, empty_resident("t", missing[pick % len(missing)]))

    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        if missing := self.missing():
            failure = Failure(reason="X", why="broken", attempts=1, transient=False, at=0)
            self.pool = replace(self.pool, failed={("t", missing[pick % len(missing)]): failure})

    def missing(self) -> list[int]:
        task = self.pool.tasks.get("t")
        return [version for version in task.live if ("t", version) not in self.pool.residents] if task else []

    @invariant()
    def routes_are_followed_as_far_as_they_can_be(self) -> None:
        followed = {}
        for alias, route in self.pool.tasks["t"].routes.items() if self.pool.tasks else ():
            shares = {
                version: share for version, share in route.shares.items() if ("t", version) in self.pool.residents
            }
            shadows = tuple(version for version in route.shadows if ("t", version) in self.pool.residents)
            is_own = self.pool.aliases.get(("t", alias)) == self.pool.tasks["t"].at(alias)
            if is_own and (shares or shadows):
                followed["t", alias] = Route(shares=shares, shadows=shadows, bounds=route.bounds if shares else None)
        assert self.pool.routes == followed

    @invariant()
    def every_request_is_led_to_one_resident_version(self) -> None:
        for (task, alias), main in self.pool.aliases.items():
            route = self.pool.routes.get((task, alias), Route())
            assert self.pool.resolve(task, alias=alias).version == main
            for key in KEYS:
                chosen = self.pool.resolve(task, alias=alias, key=key).version
                assert chosen in {main, *route.shares}
                assert self.pool.resolve(task, alias=alias, key=key).version == chosen
                shadows = {resident.version for resident in self.pool.shadows(task, alias, chosen)}
                assert chosen not in shadows
                assert shadows - {main} == set(route.shadows)
                assert (self.pool.routed_since(task, alias, chosen) is None) == (route == Route())

    @invariant()
    def what_pins_a_version_gets_it(self) -> None:
        for task, version in self.pool.residents:
            if version in self.pool.tasks[task].live:
                assert self.pool.resolve(task, version=version, key=KEYS[0]).version == version

    @invariant()
    def what_serves_or_is_routed_is_resident(self) -> None:
        versions = {(task, version) for (task, _), version in self.pool.aliases.items()}
        versions |= {(task, version) for (task, _), route in self.pool.routes.items() for version in route.versions}
        assert versions <= set(self.pool.residents)


Placing.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPlacing = Placing.TestCase


@pytest.mark.slow
class TestPlacingAtLength(Placing.TestCase):  # type: ignore[name-defined]
    settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
