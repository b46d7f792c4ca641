"""The reconciler between a real registry in a folder and a loader that fails on demand."""

import contextlib
import itertools
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.config import LoadConfig
from serving.engine.rows import Key, Resident
from serving.errors import CorruptSide, LoadFailed, NotLoaded
from serving.metrics import Metrics
from serving.versions.pool import PoolState, SidePool
from serving.versions.reconciler import Reconciler
from side_registry import (
    NothingToRollBack,
    Registry,
    State,
    Store,
    StoreFailed,
    TaskState,
    UnreadableCommit,
    VersionInUse,
)
from side_registry.errors import InvalidRoute, RollbackUnclear
from side_registry.route import Route
from tests.serving.kit import empty_resident
from tests.side_registry.runs import make_run, memory_store

EAGER = LoadConfig(poll_s=1e-9, retry_s=1e-9, max_retry_s=1e-9)
PATIENT = LoadConfig(poll_s=1e-9, retry_s=1000, max_retry_s=1000)


class FakeLoader:
    """Makes empty residents, except of broken versions."""

    def __init__(self) -> None:
        self.broken: dict[Key, bool] = {}
        """Versions that fail, and whether that is transient."""
        self.loads: list[Key] = []
        self.times: list[float] = []
        """When each was asked for, by time.monotonic()."""
        self.gates: dict[Key, threading.Event] = {}

    def load(self, task: str, version: int) -> Resident:
        key = task, version
        self.loads.append(key)
        self.times.append(time.monotonic())
        if key in self.gates:
            assert self.gates[key].wait(60)
        if key in self.broken:
            raise LoadFailed(task, version, "it is broken", transient=self.broken[key])
        return empty_resident(task, version)


class FlakyRegistry:
    """A registry that can be away."""

    def __init__(self, registry: Registry) -> None:
        self.inner, self.away = registry, False

    def state(self, refresh: bool = True) -> State:
        self._check(refresh)
        return self.inner.state(refresh)

    def wait(self, after: int, timeout_s: float, poll_s: float = 0.2) -> State | None:
        self._check(True)
        return self.inner.wait(after, timeout_s, poll_s)

    def _check(self, refresh: bool) -> None:
        if self.away and refresh:
            raise StoreFailed("s3://bucket", "log", "connection refused")


class House:
    """A registry, a pool and the reconciler between them, stepped by hand unless `start`ed."""

    def __init__(self, folder: Path, config: LoadConfig = EAGER, store: Store | None = None) -> None:
        self.folder = folder
        self.registry = Registry.open(store or folder / "registry", create=True)
        self.flaky, self.loader, self.pool, self.metrics = (
            FlakyRegistry(self.registry),
            FakeLoader(),
            SidePool(),
            Metrics(),
        )
        self.changes: list[tuple[PoolState, PoolState]] = []
        self.reconciler = Reconciler(
            self.flaky, self.pool, self.loader.load, config, self.metrics, lambda *change: self.changes.append(change)
        )
        self._runs = 0

    def publish(self, task: str = "sst2", alias: str | None = None, number: int | None = None) -> int:
        self._runs += 1
        number = number or self._runs
        run = make_run(self.folder / f"run{number}", task, f"weights {number}".encode(), f"run-{number}")
        return self.registry.publish(run, alias=alias).version

    def settle(self) -> PoolState:
        for _ in range(200):
            if not self.reconciler.step():
                break
        return self.pool.snapshot()

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def patient(tmp_path: Path) -> House:
    return House(tmp_path, PATIENT)


def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_empty_registry_is_served_at_once(house: House) -> None:
    state = house.settle()
    assert (state.generation, state.wanted) == (0, 0)


def test_start_loads_everything_before_it_returns_and_tells_how_far_it_is(house: House) -> None:
    for task in ("sst2", "cola", "stsb"):
        house.publish(task)
    told: list[tuple[int, int, str]] = []
    house.reconciler.start(lambda *progress: told.append(progress))
    house.reconciler.stop()
    assert [done for done, _, _ in told] == [0, 1, 2, 3]
    assert {total for _, total, _ in told} == {3}
    assert {what for _, _, what in told} == {"sst2:1", "cola:1", "stsb:1", ""}
    assert house.pool.snapshot().generation == 3
    assert house.value("sidecast_resident_side_networks") == 3
    assert house.value("sidecast_resident_bytes") == 30


def test_a_publish_and_a_rollback_are_followed_by_the_thread(tmp_path: Path) -> None:
    house = House(tmp_path, LoadConfig(poll_s=0.01))
    house.publish()
    house.reconciler.start()
    house.publish(alias="production")
    until(lambda: house.pool.resolve("sst2").version == 2)
    house.registry.rollback("sst2")
    until(lambda: house.pool.resolve("sst2").version == 1)
    assert house.pool.resolve("sst2", version=2).version == 2
    until(lambda: house.value("sidecast_generation_served") == 3)
    house.reconciler.stop()


def test_wake_makes_it_look_at_once(tmp_path: Path) -> None:
    house = House(tmp_path, LoadConfig(poll_s=30))
    house.reconciler.start()
    house.publish()
    house.reconciler.wake()
    until(lambda: house.pool.snapshot().generation == 1)
    house.reconciler.stop()


def test_a_version_that_does_not_load_leaves_the_old_one_serving_and_is_on_record(patient: House) -> None:
    patient.publish()
    patient.settle()
    patient.loader.broken["sst2", 2] = False
    patient.publish(alias="production")
    state = patient.settle()
    assert state.resolve("sst2").version == 1
    assert state.generation == state.wanted == 2
    assert state.failed["sst2", 2].why.endswith("it is broken")
    with pytest.raises(NotLoaded, match="it is broken"):
        state.resolve("sst2", version=2)
    assert patient.value("sidecast_load_failures_total", task="sst2", reason="LOAD_FAILED") == 1


def test_a_failed_version_is_tried_again_when_its_task_changes_and_not_before(patient: House) -> None:
    patient.loader.broken["sst2", 1] = False
    patient.publish()
    patient.settle()
    patient.publish("cola")
    patient.settle()
    assert patient.loader.loads.count(("sst2", 1)) == 1
    del patient.loader.broken["sst2", 1]
    patient.publish("sst2")
    assert patient.settle().resolve("sst2").version == 1
    assert patient.loader.loads.count(("sst2", 1)) == 2


def test_a_failed_version_is_tried_again_by_any_change_after_the_longest_pause(house: House) -> None:
    house.loader.broken["sst2", 1] = False
    house.publish()
    house.settle()
    house.settle()
    assert house.loader.loads.count(("sst2", 1)) == 1  # not by time alone
    house.publish("cola")
    house.settle()
    assert house.loader.loads.count(("sst2", 1)) == 2


def test_a_transient_failure_is_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    house = House(tmp_path, LoadConfig(poll_s=0.005, retry_s=0.02, max_retry_s=1))
    house.loader.broken["sst2", 1] = True
    house.publish()
    house.reconciler.start()
    until(lambda: len(house.loader.times) >= 4)
    gaps = [later - sooner for sooner, later in itertools.pairwise(house.loader.times)]
    assert all(gap >= 0.02 * 2**number for number, gap in enumerate(gaps))
    house.loader.broken.clear()
    until(lambda: ("sst2", "production") in house.pool.snapshot().aliases)
    house.reconciler.stop()
    assert house.pool.snapshot().failed == {}


def test_a_loader_that_raises_anything_is_a_failure_of_that_version(patient: House) -> None:
    def load(task: str, version: int) -> Resident:
        if task == "bad":
            raise KeyError("surprise")
        return empty_resident(task, version)

    patient.reconciler._load_one = load
    patient.publish("bad")
    patient.publish("good")
    state = patient.settle()
    assert state.failed["bad", 1].reason == "LOAD_FAILED"
    assert state.resolve("good").version == 1


def test_the_failures_reason_is_the_metrics_label(patient: House) -> None:
    def load(task: str, version: int) -> Resident:
        raise CorruptSide(task, version, "bits flipped")

    patient.reconciler._load_one = load
    patient.publish()
    patient.settle()
    assert patient.value("sidecast_load_failures_total", task="sst2", reason="CORRUPT_SIDE") == 1


def test_aliased_versions_load_first_and_failed_ones_last(patient: House) -> None:
    for task in ("a", "b"):
        for _ in range(3):
            patient.publish(task)
    patient.registry.set_alias("b", "canary", 2)
    patient.settle()
    assert patient.loader.loads == [("b", 2), ("a", 1), ("b", 1), ("a", 3), ("b", 3), ("a", 2)]


def test_a_rollback_does_not_wait_for_a_queue_of_loads(house: House) -> None:
    house.publish()
    house.publish(alias="production")
    house.settle()
    for _ in range(5):
        house.publish("cola")
    house.reconciler.step()
    assert house.pool.snapshot().generation == 2
    house.registry.rollback("sst2")
    house.reconciler.step()
    assert house.pool.resolve("sst2").version == 1
    assert len(house.loader.loads) < 7


def test_what_is_retired_while_others_load_is_not_loaded(tmp_path: Path) -> None:
    house = House(tmp_path, LoadConfig(poll_s=1000))
    for _ in range(5):
        house.publish()
    house.reconciler.step()
    for version in (2, 3, 4):
        house.registry.retire("sst2", version)
    house.settle()
    assert house.loader.loads == [("sst2", 1), ("sst2", 5)]


def test_a_slow_load_does_not_disturb_what_is_served(tmp_path: Path) -> None:
    house = House(tmp_path, LoadConfig(poll_s=0.005))
    house.publish()
    house.reconciler.start()
    gate = house.loader.gates["sst2", 2] = threading.Event()
    house.publish(alias="production")
    until(lambda: ("sst2", 2) in house.loader.loads)
    state = house.pool.snapshot()
    assert state.resolve("sst2").version == 1
    assert (state.generation, state.wanted) == (1, 2)
    gate.set()
    until(lambda: house.pool.resolve("sst2").version == 2)
    house.reconciler.stop()


def test_a_canary_gets_its_share_once_it_is_loaded_and_its_shadow_joins_it(house: House) -> None:
    house.publish()
    house.settle()
    for _ in range(2):
        house.publish()
    house.registry.set_route("sst2", "production", Route(shares={2: 9999}, shadows=(3,)))
    house.reconciler._adopt(house.registry.state())
    state = house.pool.snapshot()
    assert state.routes == {}
    assert {state.resolve("sst2", key=f"{number}").version for number in range(20)} == {1}
    assert state.beside("sst2", "production", 1) == ()
    state = house.settle()
    assert state.resolve("sst2", key="a").version == 2
    assert [resident.version for resident in state.beside("sst2", "production", 2)] == [3]
    house.registry.set_route("sst2", "production", Route())
    assert house.settle().resolve("sst2", key="a").version == 1


def test_the_share_of_a_version_that_does_not_load_stays_with_the_aliass_own(patient: House) -> None:
    patient.publish()
    patient.loader.broken["sst2", 2] = False
    patient.publish()
    patient.registry.set_route("sst2", "production", Route(shares={2: 9999}))
    state = patient.settle()
    assert state.resolve("sst2", key="a").version == 1
    assert state.generation == state.wanted == 3
    assert patient.value("sidecast_load_failures_total", task="sst2", reason="LOAD_FAILED") == 1
    patient.loader.broken.clear()
    patient.registry.set_route("sst2", "production", Route(shares={2: 9998}))
    assert patient.settle().resolve("sst2", key="a").version == 2  # tried again, as its task has changed


def test_retired_versions_leave_and_their_memory_with_them(house: House) -> None:
    house.publish()
    house.publish(alias="production")
    house.settle()
    for version in (1, 2):
        house.metrics.request("sst2", version, "OK")
    house.registry.retire("sst2", 1)
    assert set(house.settle().residents) == {("sst2", 2)}
    assert house.value("sidecast_resident_side_networks") == 1
    served = {"task": "sst2", "code": "OK"}
    assert house.value("sidecast_requests_total", version="1", **served) is None
    assert house.value("sidecast_requests_total", version="2", **served) == 1


def test_a_deleted_task_leaves_and_so_do_its_metric_labels(patient: House) -> None:
    patient.loader.broken["sst2", 1] = False
    patient.publish()
    patient.publish("cola")
    patient.settle()
    patient.registry.delete_task("sst2")
    state = patient.settle()
    assert set(state.tasks) == {"cola"}
    assert state.failed == {}
    assert patient.value("sidecast_load_failures_total", task="sst2", reason="LOAD_FAILED") is None


def test_a_registry_that_is_away_is_logged_once_and_caught_up_with(house: House, caplog) -> None:
    house.publish()
    house.settle()
    house.flaky.away, read = True, house.value("sidecast_registry_read_timestamp_seconds")
    with caplog.at_level(logging.WARNING, "serving.versions.reconciler"):
        for _ in range(5):
            house.reconciler.step()
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1
    assert house.pool.resolve("sst2").version == 1
    assert house.value("sidecast_registry_read_timestamp_seconds") == read
    house.publish(alias="production")
    house.flaky.away = False
    assert house.settle().resolve("sst2").version == 2
    assert house.value("sidecast_registry_read_timestamp_seconds") > read


def test_start_says_so_when_the_registry_is_away(house: House) -> None:
    house.flaky.away = True
    with pytest.raises(StoreFailed):
        house.reconciler.start()


def test_a_damaged_commit_stops_nothing_that_was_valid_before(house: House, caplog) -> None:
    house.publish()
    log_folder = house.folder / "registry" / "log"
    (log_folder / f"{2:020d}.json").write_text("{ not json")
    house.registry = Registry.open(house.folder / "registry")
    house.flaky.inner = house.registry
    with caplog.at_level(logging.WARNING, "serving.versions.reconciler"):
        house.reconciler.start()
    house.reconciler.stop()
    assert house.pool.resolve("sst2").version == 1
    assert f"{2:020d}" in caplog.text
    with pytest.raises(UnreadableCommit):
        house.registry.state()


def test_a_listener_that_raises_stops_nothing(house: House, caplog) -> None:
    house.reconciler._on_change = lambda old, new: 1 / 0
    house.publish()
    assert house.settle().resolve("sst2").version == 1
    assert "a listener of the pool failed" in caplog.text


def test_listeners_see_every_change_in_order(house: House) -> None:
    house.publish()
    house.settle()
    for (_, before), (after, _) in zip(house.changes, house.changes[1:], strict=False):
        assert before is after


def test_a_fault_of_the_reconciler_itself_does_not_end_its_thread(tmp_path: Path, monkeypatch, caplog) -> None:
    house = House(tmp_path, LoadConfig(poll_s=0.005, retry_s=0.005))
    house.reconciler.start()
    with monkeypatch.context() as patch:
        patch.setattr("serving.versions.reconciler.place", lambda *_: 1 / 0)
        house.publish()
        until(lambda: "the reconciler failed" in caplog.text)
    until(lambda: house.pool.snapshot().generation == 1)
    house.reconciler.stop()


TASKS, ALIASES = st.sampled_from(["a", "a", "a", "b"]), st.sampled_from(["production", "production", "canary"])
PICK, STEPS = st.integers(0, 9), st.integers(0, 3)


class Following(RuleBasedStateMachine):
    """Whatever is published, promoted, rolled back, retired, deleted, broken and mended: nobody loses an answer."""

    @initialize(first=st.sampled_from(["yes", "no"]))
    def begin(self, first: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sidecast-test-"))
        self.house = House(self.folder, store=memory_store())
        self.house.reconciler._on_change = self.watch
        self.faults: list[str] = []
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
        """Look at every state that a request could have seen."""
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
    settings = _settings(300)


def test_memory_is_tidied_after_residents_came_or_went_and_not_too_often(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    tidied: list[int] = []
    monkeypatch.setattr(house.reconciler, "_tidy", lambda: tidied.append(len(house.pool.snapshot().residents)))
    house.settle()
    assert tidied == []
    house.publish("sst2")
    house.settle()
    house.settle()
    assert tidied == [1]
    house.publish("cola")
    house.settle()
    assert tidied == [1]
    monkeypatch.setattr("serving.versions.reconciler.TIDY_S", 0.0)
    house.settle()
    assert tidied == [1, 2]
