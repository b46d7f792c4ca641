"""The registry against a model of it that is slow and obvious, through any sequence of verbs."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from side_registry import NothingToRollBack, Registry, RegistryError, UnknownAlias, UnknownTask, UnknownVersion, fold
from side_registry import VersionInUse as InUse
from side_registry.checkpoints import NAME, Checkpoint
from side_registry.log import Log
from tests.side_registry.runs import make_run, memory_store

TASKS = ("sst2", "cola")
tasks = st.sampled_from(TASKS)
aliases = st.sampled_from(["production", "canary"])
versions = st.integers(1, 4)
payloads = st.integers(1, 4)


@dataclass
class ModelTask:
    payloads: list[int] = field(default_factory=list)  # of version 1, 2, ...
    retired: set[int] = field(default_factory=set)
    moves: dict[str, list[int]] = field(default_factory=dict)
    exists: bool = False

    def live(self) -> list[int]:
        return [version for version in range(1, len(self.payloads) + 1) if version not in self.retired]

    def move(self, alias: str, version: int) -> None:
        moves = self.moves.setdefault(alias, [])
        if moves[-1:] != [version]:
            moves.append(version)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.often = patch("side_registry.registry.EVERY", 3)
        self.often.start()
        self.folder = Path(tempfile.mkdtemp())
        self.store = memory_store()
        self.registry = Registry.open(self.store, create=True)
        self.model = {name: ModelTask() for name in TASKS}
        self.checkpointed: dict[str, Checkpoint] = {}

    @initialize()
    def make_runs(self) -> None:
        for task in TASKS:
            for number in range(1, 5):
                make_run(self.folder / f"{task}-{number}", task, b"%d" % number, f"run-{number}")

    @rule(task=tasks, payload=payloads, alias=st.none() | aliases)
    def publish(self, task: str, payload: int, alias: str | None) -> None:
        published = self.registry.publish(self.folder / f"{task}-{payload}", alias=alias)
        model = self.model[task]
        same = [version for version in model.live() if model.payloads[version - 1] == payload]
        if not same:
            model.payloads.append(payload)
        version = same[0] if same else len(model.payloads)
        assert (published.version, published.already) == (version, bool(same))
        if alias or not model.exists:
            model.move(alias or "production", version)
        model.exists = True

    @rule(task=tasks, alias=aliases, version=versions)
    def set_alias(self, task: str, alias: str, version: int) -> None:
        model = self.model[task]
        if not model.exists:
            self.refused(UnknownTask, self.registry.set_alias, task, alias, version)
        elif version not in model.live():
            self.refused(UnknownVersion, self.registry.set_alias, task, alias, version)
        else:
            self.registry.set_alias(task, alias, version)
            model.move(alias, version)

    @rule(task=tasks, alias=aliases)
    def rollback(self, task: str, alias: str) -> None:
        model = self.model[task]
        if not model.exists:
            return self.refused(UnknownTask, self.registry.rollback, task, alias)
        if alias not in model.moves:
            return self.refused(UnknownAlias, self.registry.rollback, task, alias)
        moves = list(model.moves[alias])
        current = moves.pop()
        while moves and (moves[-1] in model.retired or moves[-1] == current):
            moves.pop()
        if not moves:
            return self.refused(NothingToRollBack, self.registry.rollback, task, alias)
        rolled = self.registry.rollback(task, alias)
        assert (rolled.version_from, rolled.version_to) == (current, moves[-1])
        model.moves[alias] = moves
        return None

    @rule(task=tasks, version=versions)
    def retire(self, task: str, version: int) -> None:
        model = self.model[task]
        if not model.exists:
            self.refused(UnknownTask, self.registry.retire, task, version)
        elif version > len(model.payloads):
            self.refused(UnknownVersion, self.registry.retire, task, version)
        elif version in [moves[-1] for moves in model.moves.values()]:
            self.refused(InUse, self.registry.retire, task, version)
        else:
            self.registry.retire(task, version)
            model.retired.add(version)

    @rule(task=tasks)
    def delete(self, task: str) -> None:
        model = self.model[task]
        if not model.exists:
            return self.refused(UnknownTask, self.registry.delete_task, task)
        self.registry.delete_task(task)
        model.retired = set(range(1, len(model.payloads) + 1))
        model.moves, model.exists = {}, False
        return None

    @rule()
    def reopen(self) -> None:
        self.registry = Registry.open(self.store)

    @precondition(lambda self: self.store.list("checkpoints"))
    @rule(data=st.data(), how=st.sampled_from(["lose", "damage"]))
    def spoil_a_checkpoint(self, data: st.DataObject, how: str) -> None:
        path = data.draw(st.sampled_from(self.store.list("checkpoints")))
        if how == "lose":
            self.store.remove(path)
        else:
            self.store.overwrite(path, b"{}")
        self.registry = Registry.open(self.store)

    @invariant()
    def the_registry_is_as_the_model(self) -> None:
        state = self.registry.state()
        assert set(state.live) == {name for name, model in self.model.items() if model.exists}
        for name, task in state.tasks.items():
            model = self.model[name]
            assert list(task.live) == model.live()
            assert task.last_version == len(model.payloads)
            assert {alias: list(stack) for alias, stack in task.aliases.items()} == model.moves
            assert not set(task.serving.values()) & model.retired

    @invariant()
    def keep_checkpoints(self) -> None:
        for path in self.store.list("checkpoints"):
            data = self.store.read(path, 1 << 20)
            if data and data != b"{}\n" and data != b"{}" and NAME.fullmatch(path):
                self.checkpointed[path] = Checkpoint.model_validate_json(data)

    def teardown(self) -> None:
        """Folding the whole log, or its end from any checkpoint there ever was, gives the same state."""
        self.often.stop()
        shutil.rmtree(self.folder)
        log, state = Log(self.store), self.registry.state()
        assert fold(log.after(0)) == state
        for checkpoint in self.checkpointed.values():
            assert fold(log.after(checkpoint.state.generation), checkpoint.state) == state

    def refused(self, kind: type[RegistryError], verb, *arguments: object) -> None:
        before = self.registry.state()
        with pytest.raises(kind):
            verb(*arguments)
        assert self.registry.state() == before


RegistryMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestRegistryAgainstModel = RegistryMachine.TestCase
