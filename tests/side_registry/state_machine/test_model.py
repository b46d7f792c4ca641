"""The registry against its model, through any sequence of verbs and mishaps.

Two writers share a store: they race, their answers get lost, they are killed, checkpoints vanish or come back, and
garbage lies where the next commit should.
"""

import shutil
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from obstore.store import MemoryStore

from side_registry import PLAIN, Bounds, Registry, RegistryError, Route, Store, StoreFailed, UnreadableCommit, fold
from side_registry.checkpoints import read_checkpoint
from side_registry.log import Log, log_path
from side_registry.state import State
from tests.side_registry.runs import make_run
from tests.side_registry.state_machine.model import Model, Refused

TASKS = ("sst2", "cola")
ROUTES = (
    PLAIN,
    Route(shares={2: 9000, 3: 500}, shadows=(4,), bounds=Bounds(error_rate=0.01)),
    Route(shares={1: 500}, shadows=(4,)),
    Route(shadows=(3, 4)),
)

tasks = st.sampled_from(TASKS)
aliases = st.sampled_from(["production", "canary"])
versions = st.integers(1, 4)
routes = st.sampled_from(ROUTES)
VERBS = {
    "publish": st.tuples(st.just("publish"), tasks, versions, st.none() | aliases),
    "set_alias": st.tuples(st.just("set_alias"), tasks, aliases, versions),
    "set_route": st.tuples(st.just("set_route"), tasks, aliases, routes, st.none() | versions, st.none() | routes),
    "end_route": st.tuples(st.just("end_route"), tasks, aliases, st.none() | routes),  # None: the route it has
    "rollback": st.tuples(st.just("rollback"), tasks, aliases, st.none() | versions),
    "retire": st.tuples(st.just("retire"), tasks, versions),
    "delete_task": st.tuples(st.just("delete_task"), st.just("cola")),
}
OFTEN = ("set_route",) * 5 + ("set_alias", "rollback", "end_route") * 2
verbs = st.sampled_from((*OFTEN, *VERBS)).flatmap(VERBS.__getitem__)
Verb = tuple[Any, ...]


class Killed(BaseException):
    pass


class Unlucky(Store):
    """A rival commits just before it writes a commit, or it has one mishap right after that."""

    mishap: str = ""
    rival: Callable[[], object] | None = None

    def put_new(self, path: str, data: bytes) -> bool:
        if path.startswith("log/") and self.rival:
            rival, self.rival = self.rival, None
            rival()
        done = super().put_new(path, data)
        mishap = ""
        if path.startswith("log/"):
            mishap, self.mishap = self.mishap, ""
        if mishap == "killed":
            raise Killed
        if mishap == "answer lost":
            raise StoreFailed(self.url, path, "timed out")
        return super().put_new(path, data) if mishap == "tried twice" else done


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = patch("side_registry.registry.EVERY", 3)
        self.patch.start()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Unlucky("memory://", MemoryStore())
        self.writers = [Registry.open(self.store, create=True), Registry.open(self.store)]
        self.model, self.generation = Model(*TASKS), 0
        self.checkpoints: dict[str, bytes] = {}
        self.kept: list[State] = []

    @initialize()
    def publish_four_versions(self) -> None:
        for task in TASKS:
            for number in range(1, 5):
                make_run(self.folder / f"{task}-{number}", task, b"%d" % number, f"run-{number}")
                self.do(("publish", task, number, None), 0)

    @rule(verb=verbs, writer=st.integers(0, 1))
    def do(self, verb: Verb, writer: int) -> None:
        verb = self.meant(verb)
        assert self.real(verb, writer) == self.expected(verb)

    @rule(verb=verbs, other=verbs)
    def race(self, verb: Verb, other: Verb) -> None:
        """The other writer is done between our look and our commit: it came first, and we decided again."""
        verb, other, outcomes = self.meant(verb), self.meant(other), list[object]()
        self.store.rival = lambda: outcomes.append(self.real(other, 1))
        outcome, self.store.rival = self.real(verb, 0), None
        if outcomes:
            assert outcomes == [self.expected(other)]
        assert outcome == self.expected(verb)

    @rule(verb=verbs, mishap=st.sampled_from(["answer lost", "tried twice"]))
    def do_with_a_mishap(self, verb: Verb, mishap: str) -> None:
        verb, self.store.mishap = self.meant(verb), mishap
        assert self.real(verb, 0) == self.expected(verb)
        self.store.mishap = ""

    @rule(verb=verbs)
    def kill(self, verb: Verb) -> None:
        """What a killed writer had put counts. A publish that is tried again finds it."""
        verb, self.store.mishap = self.meant(verb), "killed"
        try:
            outcome = self.real(verb, 0)
        except Killed:
            self.expected(verb)
        else:
            self.store.mishap = ""
            assert outcome == self.expected(verb)
        self.writers[0] = Registry.open(self.store)
        if verb[0] == "publish":
            assert self.real(verb, 0) == self.expected(verb)

    @rule(writer=st.integers(0, 1))
    def reopen(self, writer: int) -> None:
        self.writers[writer] = Registry.open(self.store)

    @precondition(lambda self: self.checkpoints)
    @rule(data=st.data(), how=st.sampled_from(["lost", "damaged", "stale"]))
    def spoil_checkpoints(self, data: st.DataObject, how: str) -> None:
        path = data.draw(st.sampled_from(sorted(self.checkpoints)))
        for other in self.store.list("checkpoints"):
            if how == "stale" or other == path:
                self.store.remove(other)
        if how != "lost":
            self.store.overwrite(path, self.checkpoints[path] if how == "stale" else b"{}")
        self.writers[0] = Registry.open(self.store)

    @rule(verb=verbs, how=st.sampled_from(["empty", "foreign", "truncated", "another's"]))
    def garbage_is_in_the_way(self, verb: Verb, how: str) -> None:
        path, last = log_path(self.generation + 1), self.store.read(log_path(self.generation), 1 << 20) or b"{}"
        garbage = {"empty": b"", "foreign": b"\x00\xff", "truncated": last[:-9], "another's": last}[how]
        self.store.overwrite(path, garbage)
        for registry in (*self.writers, Registry.open(self.store)):
            with pytest.raises(UnreadableCommit) as caught:
                registry.state()
            assert caught.value.path == path
            self.model.check(registry.state(refresh=False))
        with pytest.raises(UnreadableCommit):
            self.call(self.meant(verb), self.writers[0])
        self.store.remove(path)

    @invariant()
    def both_writers_see_what_the_model_says(self) -> None:
        for registry in self.writers:
            state = registry.state()
            assert state.generation == self.generation
            self.model.check(state)

    @invariant()
    def keep_checkpoints(self) -> None:
        for path in self.store.list("checkpoints"):
            if path not in self.checkpoints and (state := read_checkpoint(self.store, path)):
                self.checkpoints[path] = self.store.read(path, 1 << 20) or b""
                self.kept.append(state)

    def teardown(self) -> None:
        """Folding the whole log, or its end from any checkpoint there ever was, gives the same state."""
        self.patch.stop()
        shutil.rmtree(self.folder)
        log, state = Log(self.store), self.writers[0].state()
        assert fold(log.after(0)) == state
        for checkpoint in self.kept:
            assert fold(log.after(checkpoint.generation), checkpoint) == state

    def meant(self, verb: Verb) -> Verb:
        """With the route it has now, where the verb is about that."""
        match verb:
            case "end_route", task, alias, None:
                return "end_route", task, alias, self.model.tasks[task].routes.get(alias, PLAIN)
        return verb

    def expected(self, verb: Verb) -> object:
        """What the model answers, or the class of its error. A change is one commit, and no change none."""
        before = deepcopy(self.model.tasks)
        try:
            return getattr(self.model, verb[0])(*verb[1:])
        except Refused as refused:
            assert self.model.tasks == before
            return refused.kind
        finally:
            self.generation += self.model.tasks != before

    def real(self, verb: Verb, writer: int) -> object:
        """The same of the registry."""
        try:
            return self.call(verb, self.writers[writer])
        except RegistryError as error:
            return type(error)

    def call(self, verb: Verb, registry: Registry) -> object:
        match verb:
            case "publish", task, payload, alias:
                published = registry.publish(self.folder / f"{task}-{payload}", alias=alias)
                return published.version, published.already, published.aliases
            case "set_route", task, alias, route, version, seen:
                registry.set_route(task, alias, route, version=version, seen=seen)
            case "end_route", task, alias, seen:
                return registry.end_route(task, alias, seen) is not None
            case "rollback", task, alias, to:
                rolled = registry.rollback(task, alias, to)
                return rolled.version_from, rolled.version_to
            case name, *arguments:
                getattr(registry, name)(*arguments)
        return None


SHARES, SHADOWS = ROUTES[1], ROUTES[3]
SEQUENCES: dict[str, list[Verb]] = {
    "a task published again with an alias has only that": [
        ("delete_task", "cola"),
        ("publish", "cola", 1, "canary"),
    ],
    "an alias moves with a publish, of the same run too": [
        ("publish", "sst2", 2, "canary"),
        ("publish", "sst2", 3, "canary"),
        ("publish", "sst2", 3, "canary"),
        ("publish", "sst2", 3, None),
    ],
    "a retired version published again is a new one": [
        ("retire", "sst2", 3),
        ("publish", "sst2", 3, None),
        ("publish", "sst2", 3, None),
    ],
    "a rollback forgets only what came after": [
        *(("set_alias", "sst2", "production", version) for version in (2, 1, 2, 3)),
        ("rollback", "sst2", "production", None),
        ("rollback", "sst2", "production", None),
    ],
    "a rollback skips retired versions and the current one": [
        *(("set_alias", "sst2", "production", version) for version in (2, 3, 2, 1)),
        ("retire", "sst2", 3),
        ("rollback", "sst2", "production", None),
        ("retire", "sst2", 1),
        ("rollback", "sst2", "production", None),
    ],
    "a route that is so already commits nothing": [
        ("set_route", "sst2", "production", SHARES, None, None),
        ("set_route", "sst2", "production", SHARES, None, None),
        ("set_route", "sst2", "production", SHARES, 1, None),
        ("set_route", "sst2", "production", PLAIN, None, None),
        ("set_route", "sst2", "production", PLAIN, None, None),
    ],
    "aliases and tasks have routes of their own": [
        ("set_alias", "sst2", "canary", 1),
        ("set_route", "sst2", "production", SHARES, None, None),
        ("set_route", "sst2", "canary", SHADOWS, None, None),
        ("set_route", "cola", "production", SHARES, None, None),
        ("set_alias", "sst2", "canary", 3),
    ],
    "a promotion ends the route, to whatever version": [
        ("set_route", "sst2", "production", SHARES, None, None),
        ("set_alias", "sst2", "production", 1),
        ("set_route", "sst2", "production", SHARES, None, None),
        ("set_alias", "sst2", "production", 2),
        ("set_route", "sst2", "production", SHADOWS, None, None),
        ("set_alias", "sst2", "production", 4),
    ],
    "a publish ends the route of an alias that it moves": [
        ("set_route", "sst2", "production", SHARES, None, None),
        ("publish", "sst2", 2, "canary"),
        ("publish", "sst2", 1, "production"),
        ("publish", "sst2", 2, "production"),
    ],
    "shares end once, and only of a route that there is": [
        ("set_route", "sst2", "production", SHARES, None, None),
        ("end_route", "sst2", "production", SHARES),
        ("end_route", "sst2", "production", SHARES),
        ("end_route", "sst2", "production", None),
        ("end_route", "sst2", "canary", SHARES),
        ("delete_task", "cola"),
        ("end_route", "cola", "production", SHARES),
    ],
    "another route takes its place": [
        ("set_route", "sst2", "production", SHARES, None, None),
        ("set_route", "sst2", "production", SHADOWS, None, None),
    ],
    "a rollback takes shares away first, names the largest, and needs no earlier version for that": [
        ("set_route", "sst2", "production", SHARES, None, None),
        ("rollback", "sst2", "production", None),
        ("set_route", "sst2", "production", Route(shares={2: 500, 3: 900, 4: 900}), None, None),
        ("rollback", "sst2", "production", None),
        ("rollback", "sst2", "production", None),
    ],
    "a rollback of an alias with shadows alone moves it": [
        ("set_alias", "sst2", "production", 2),
        ("set_route", "sst2", "production", SHADOWS, None, None),
        ("rollback", "sst2", "production", None),
    ],
    "a rollback to a version goes by the past, whatever has a share": [
        ("set_alias", "sst2", "production", 4),
        ("set_route", "sst2", "production", Route(shares={2: 500}), None, None),
        ("rollback", "sst2", "production", 2),
        ("rollback", "sst2", "production", 1),
    ],
    "after shares went, a rollback is unclear until the alias moves": [
        ("set_alias", "sst2", "production", 2),
        ("set_route", "sst2", "production", Route(shares={3: 500}), None, None),
        ("rollback", "sst2", "production", None),
        ("rollback", "sst2", "production", None),
        ("set_alias", "sst2", "production", 3),
        ("rollback", "sst2", "production", None),
        ("rollback", "sst2", "production", None),
    ],
    "after shares went, a rollback is unclear until there are shares again": [
        ("set_alias", "sst2", "production", 2),
        ("set_route", "sst2", "production", Route(shares={3: 500}), None, None),
        ("end_route", "sst2", "production", None),
        ("set_route", "sst2", "production", Route(shares={3: 500}), None, None),
        ("set_route", "sst2", "production", Route(shadows=(3,)), None, None),
        ("set_route", "sst2", "production", Route(shares={3: 500}), None, None),
    ],
    "a deleted task forgets its routes": [
        ("set_route", "cola", "production", SHARES, None, None),
        ("end_route", "cola", "production", None),
        ("set_alias", "cola", "canary", 2),
        ("set_route", "cola", "canary", SHADOWS, None, None),
        ("delete_task", "cola"),
        ("publish", "cola", 1, None),
    ],
}


@pytest.mark.parametrize("verbs", SEQUENCES.values(), ids=SEQUENCES)
def test_sequences_that_a_search_seldom_finds(verbs: list[Verb]):
    machine = RegistryMachine()
    try:
        machine.publish_four_versions()
        for verb in verbs:
            machine.do(verb, 0)
            machine.both_writers_see_what_the_model_says()
    finally:
        machine.teardown()


class TestRegistryAgainstModel(RegistryMachine.TestCase):
    settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestRegistryAgainstModelAtLength(RegistryMachine.TestCase):
    settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
