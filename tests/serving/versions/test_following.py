"""The reconciler under any sequence of changes of the registry, as a state machine."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.versions.pool import PoolState
from side_registry import NothingToRollBack, TaskState, VersionInUse
from side_registry.errors import InvalidRoute, RollbackUnclear
from side_registry.route import Route
from tests.serving.versions.house import House
from tests.side_registry.runs import memory_store

TASKS = st.sampled_from(["a", "a", "a", "b"])
ALIASES = st.sampled_from(["production", "production", "canary"])
PICK = st.integers(0, 9)
STEPS = st.integers(0, 3)


class Following(RuleBasedStateMachine):
    """Publishes, promotions, rollbacks, retirements, deletions, faults and repairs in any order: no alias loses its
    answer, and every state that a request could see is sound."""

    @initialize(first=st.sampled_from(["yes", "no"]))
    def begin(self, first: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sidecast-test-"))
        self.faults: list[str] = []
        self.house = House(self.folder, store=memory_store(), on_change=self.watch)
        self.publish("a", None, first, 3)
        self.publish("a", "production", "yes", 3)

    def teardown(self) -> None:
        self.catch_up()
        shutil.rmtree(self.folder)

    def task(self, name: str) -> TaskState:
        return self.house.registry.state().live.get(name, TaskState(name=name))

    def pick(self, name: str, pick: int) -> int | None:
        live = self.task(name).live
        return live[pick % len(live)] if live else None

    @rule(name=TASKS, alias=st.none() | ALIASES, loads=st.sampled_from(["yes", "yes", "no", "not yet"]), steps=STEPS)
    def publish(self, name: str, alias: str | None, loads: str, steps: int) -> None:
        version = self.house.registry.state().tasks.get(name, TaskState(name=name)).last_version + 1
        if loads != "yes":
            self.house.loader.broken[name, version] = loads == "not yet"
        assert self.house.publish(name, alias) == version
        self.step(steps)

    @rule(loads=st.sampled_from(["yes", "no"]), steps=STEPS)
    def release(self, loads: str, steps: int) -> None:
        self.publish("a", "production", loads, steps)

    @rule(name=TASKS, alias=ALIASES, pick=PICK, steps=STEPS)
    def promote(self, name: str, alias: str, pick: int, steps: int) -> None:
        if version := self.pick(name, pick):
            self.house.registry.set_alias(name, alias, version)
        self.step(steps)

    @rule(name=TASKS, alias=ALIASES, steps=STEPS)
    def roll_back(self, name: str, alias: str, steps: int) -> None:
        with contextlib.suppress(NothingToRollBack, RollbackUnclear):
            if alias in self.task(name).aliases:
                self.house.registry.rollback(name, alias)
        self.step(steps)

    @rule(name=TASKS, alias=ALIASES, pick=PICK, beside=PICK, share=st.integers(0, 9999), steps=STEPS)
    def split(self, name: str, alias: str, pick: int, beside: int, share: int, steps: int) -> None:
        canary, shadow = self.pick(name, pick), self.pick(name, beside)
        if canary and shadow and alias in self.task(name).aliases:
            shares = {canary: share} if share else {}
            route = Route(shares=shares, shadows=() if shadow in shares else (shadow,))
            with contextlib.suppress(InvalidRoute):
                self.house.registry.set_route(name, alias, route)
        self.step(steps)

    @rule(name=TASKS, pick=PICK, steps=STEPS)
    def retire(self, name: str, pick: int, steps: int) -> None:
        with contextlib.suppress(VersionInUse):
            if version := self.pick(name, pick):
                self.house.registry.retire(name, version)
        self.step(steps)

    @rule(name=TASKS, dice=st.integers(0, 9))
    def delete(self, name: str, dice: int) -> None:
        if dice == 0 and self.task(name).live:
            self.house.registry.delete_task(name)

    @precondition(lambda self: self.house.loader.broken)
    @rule(pick=PICK)
    def mend(self, pick: int) -> None:
        broken = self.house.loader.broken
        del broken[sorted(broken)[pick % len(broken)]]

    @rule(dice=st.integers(0, 3), steps=STEPS)
    def go_away(self, dice: int, steps: int) -> None:
        self.house.flaky.away = dice == 0
        self.step(steps)

    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.house.reconciler.step()

    @rule()
    def catch_up(self) -> None:
        self.house.flaky.away = False
        self.house.loader.broken = dict.fromkeys(self.house.loader.broken, False)  # or it would retry for ever
        state, registry = self.house.settle(), self.house.registry.state()
        assert state.generation == state.wanted == registry.generation
        for name, task in registry.live.items():
            for version in task.live:
                assert ((name, version) in state.residents) != ((name, version) in state.failed)
            for alias, stack in task.aliases.items():
                if (name, stack[-1]) in state.residents:
                    assert state.aliases[name, alias] == stack[-1]
                    loaded = {version for version in task.route(alias).versions if (name, version) in state.residents}
                    assert state.routes.get((name, alias), Route()).versions == loaded

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert self.faults == []

    def watch(self, old: PoolState, new: PoolState) -> None:
        """Checks every state that a request could see."""
        for (task, alias), version in new.aliases.items():
            known = new.tasks[task]
            stack = known.aliases[alias]
            comes = (task, stack[-1]) not in new.residents and (task, stack[-1]) not in new.failed
            if comes and version in stack and old.aliases.get((task, alias)) == version:
                continue  # it visits no third one on its way
            loaded = [v for v in stack if (task, v) in new.residents and not known.versions[v].retired]
            if loaded and loaded[-1] != version:
                self.faults.append(f"{task}@{alias} is served by {version}, and not by {loaded[-1]}")
        for (task, alias), route in new.routes.items():
            if new.aliases.get((task, alias)) != new.tasks[task].at(alias):
                self.faults.append(f"{task}@{alias} gives shares away while another version stands in")
            if not all((task, version) in new.residents for version in route.versions):
                self.faults.append(f"{task}@{alias} leads to {route.versions}, which are not all loaded")
        if not old.generation <= new.generation <= new.wanted or new.wanted < old.wanted:
            self.faults.append("a generation went back")
        for (task, alias), version in new.aliases.items():
            if (task, version) not in new.residents:
                self.faults.append(f"{task}@{alias} is served by {version}, which is not loaded")
            if task not in new.tasks or alias not in new.tasks[task].aliases:
                self.faults.append(f"{task}@{alias} is served but not in the registry")
        for task, alias in set(old.aliases) - set(new.aliases):
            if task in new.tasks and alias in new.tasks[task].aliases:
                self.faults.append(f"{task}@{alias} was available and is not")
        for task, version in new.residents:
            serves = any(key[0] == task and served == version for key, served in new.aliases.items())
            if task not in new.tasks or not (version in new.tasks[task].live or serves):
                self.faults.append(f"{task}:{version} is resident without need")


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking runs into the time limit and tells nothing
    )


Following.TestCase.settings = _settings(30)
TestFollowing = Following.TestCase


@pytest.mark.slow
class TestFollowingAtLength(Following.TestCase):  # type: ignore[name-defined]
    settings = _settings(60)
