"""The reconciler between a real registry in a folder and a loader that fails on demand."""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.config import LoadConfig
from serving.engine.rows import Resident
from serving.errors import CorruptSide, NotLoaded
from serving.versions.reconciler import MAX_REPLAYS
from side_registry import Registry, StoreFailed, UnreadableCommit
from side_registry.route import Route
from tests.serving.kit import empty_resident
from tests.serving.versions.house import PATIENT, House


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


def test_a_start_without_any_task_is_worth_a_warning(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.reconciler.begin()
    assert "the registry has no task yet" in caplog.text
    house.publish("sst2")
    caplog.clear()
    house.reconciler.begin()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_start_loads_everything_before_it_returns_and_reports_progress(house: House) -> None:
    for task in ("sst2", "cola", "stsb"):
        house.publish(task)
    reports: list[tuple[int, int, str]] = []
    house.reconciler.start(lambda *progress: reports.append(progress))
    house.reconciler.stop()
    assert [done for done, _, _ in reports] == [0, 1, 2, 3]
    assert {total for _, total, _ in reports} == {3}
    assert {what for _, _, what in reports} == {"sst2:1", "cola:1", "stsb:1", ""}
    assert house.pool.snapshot().generation == 3
    assert house.value("sidecast_resident_side_networks") == 3
    assert house.value("sidecast_resident_bytes") == 30


def test_a_start_serves_the_registry_before_all_of_it_is_loaded(house: House) -> None:
    for task in ("sst2", "cola"):
        house.publish(task)
    house.reconciler.begin(within_s=0)
    state = house.pool.snapshot()
    assert (state.generation, state.wanted, dict(state.residents)) == (2, 2, {})
    assert state.awaited("sst2") == ("sst2", 1)
    assert house.settle().resolve("sst2").version == 1
    assert house.pool.snapshot().awaited("sst2") is None


def test_a_new_version_of_a_task_that_is_still_loading_delays_its_generation(house: House) -> None:
    for task in ("sst2", "cola", "qnli"):
        house.publish(task)
    house.reconciler.begin(within_s=0)
    house.reconciler.step()
    house.publish("sst2", alias="production")
    house.loader.turns["sst2", 2] = 3
    served = [house.pool.snapshot().generation]
    while house.reconciler.step():
        state = house.pool.snapshot()
        served.append(state.generation)
        assert (state.generation == 4) == (("sst2", 2) in state.residents)
    assert served[0] == 3


def test_tasks_that_were_called_recently_are_loaded_first(tmp_path: Path) -> None:
    house = House(tmp_path, recent=("qnli", "gone", "sst2"))
    for task in ("cola", "sst2", "mrpc", "qnli"):
        house.publish(task)
    house.reconciler.begin()
    assert [task for task, _ in house.loader.loads] == ["qnli", "sst2", "cola", "mrpc"]


def test_a_version_that_a_request_waits_for_is_loaded_before_all_others(house: House) -> None:
    for task in ("cola", "mrpc", "qnli", "sst2"):
        house.publish(task)
    house.reconciler.begin(within_s=0)
    house.reconciler.ask(("sst2", 1))
    house.reconciler.ask(("nothing", 1))
    house.reconciler.ask(("qnli", 1))
    house.settle()
    assert [task for task, _ in house.loader.loads] == ["sst2", "qnli", "cola", "mrpc"]


def test_a_long_replay_that_a_request_waits_for_lets_others_load_between_its_turns(house: House) -> None:
    for task in ("cola", "mrpc", "qnli", "sst2"):
        house.publish(task)
    house.loader.turns["sst2", 1] = 3
    house.reconciler.begin(within_s=0)
    house.reconciler.ask(("sst2", 1))
    arrived: list[str] = []
    while house.reconciler.step():
        arrived += [task for task, _ in house.pool.snapshot().residents if task not in arrived]
    assert arrived == ["cola", "mrpc", "qnli"]
    assert house.loader.replays == [("sst2", 1)] * 3
    assert house.pool.holds(("sst2", 1))


def test_the_registry_is_not_read_before_each_load_of_a_start(tmp_path: Path) -> None:
    house = House(tmp_path, LoadConfig(poll_s=1000))
    for number in range(5):
        house.publish(f"task-{number}")
    reads: list[int] = []
    wait = house.flaky.wait
    house.flaky.wait = lambda after, timeout_s, poll_s=0.2: reads.append(after) or wait(after, timeout_s, poll_s)  # type: ignore[method-assign]
    house.reconciler.begin(within_s=0)
    now = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        house.settle()
    assert len(reads) == 1
    assert len(house.pool.snapshot().residents) == 5


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


def test_wake_polls_at_once(tmp_path: Path) -> None:
    house = House(tmp_path, LoadConfig(poll_s=30))
    house.reconciler.start()
    house.publish()
    house.reconciler.wake()
    until(lambda: house.pool.snapshot().generation == 1)
    house.reconciler.stop()


def test_a_version_that_does_not_load_leaves_the_old_one_serving_and_is_recorded(patient: House) -> None:
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

    patient.loader.load = load
    patient.publish("bad")
    patient.publish("good")
    state = patient.settle()
    assert state.failed["bad", 1].reason == "LOAD_FAILED"
    assert state.resolve("good").version == 1


def test_the_failures_reason_is_the_metrics_label(patient: House) -> None:
    def load(task: str, version: int) -> Resident:
        raise CorruptSide(task, version, "bits flipped")

    patient.loader.load = load
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


def test_loads_and_rollbacks_go_before_a_slow_replay(house: House) -> None:
    house.publish("sst2")
    house.publish("sst2", alias="production")
    house.settle()
    house.loader.turns["slow", 1] = 10
    house.publish("slow")
    house.reconciler.step()  # the first turn of the slow replay
    house.publish("cola")
    house.registry.rollback("sst2")
    house.reconciler.step()
    state = house.pool.snapshot()
    assert state.resolve("cola").version == 1
    assert state.resolve("sst2").version == 1
    assert house.loader.replays == [("slow", 1)]
    assert house.settle().resolve("slow").version == 1
    assert house.loader.loads.count(("slow", 1)) == 1


def test_slow_replays_take_turns(house: House) -> None:
    for task in ("one", "two"):
        house.loader.turns[task, 1] = 2
        house.publish(task)
    state = house.settle()
    assert {task for task, _ in state.residents} == {"one", "two"}
    first, second, *_ = house.loader.replays
    assert house.loader.replays == [first, second] * 2


def test_few_replays_are_open_at_once(house: House) -> None:
    for number in range(MAX_REPLAYS + 3):
        house.loader.turns[f"task-{number}", 1] = 1
        house.publish(f"task-{number}")
    for _ in range(MAX_REPLAYS + 1):
        house.reconciler.step()
    assert len(house.loader.loads) == MAX_REPLAYS
    assert len(house.pool.snapshot().residents) == 1
    assert len(house.settle().residents) == MAX_REPLAYS + 3


def test_a_version_whose_replay_fails_does_not_serve_and_holds_no_other_up(patient: House) -> None:
    patient.loader.turns["bad", 1] = 2
    patient.loader.wrong.add(("bad", 1))
    patient.publish("bad")
    patient.publish("good")
    state = patient.settle()
    assert state.failed["bad", 1].why.endswith("its answers are wrong")
    assert ("bad", 1) not in state.residents
    assert state.resolve("good").version == 1
    assert state.generation == state.wanted == 2


def test_the_replay_of_a_version_that_is_retired_meanwhile_ends(house: House) -> None:
    house.publish("sst2")
    house.settle()
    house.loader.turns["sst2", 2] = 10
    house.publish("sst2")
    house.reconciler.step()
    house.registry.retire("sst2", 2)
    assert ("sst2", 2) not in house.settle().residents
    assert house.loader.replays == [("sst2", 2)]


def test_start_ends_slow_replays_too(house: House) -> None:
    house.loader.turns["slow", 1] = 2
    house.publish("slow")
    house.publish("cola")
    reports: list[tuple[int, int, str]] = []
    house.reconciler.start(lambda *progress: reports.append(progress))
    house.reconciler.stop()
    assert set(house.pool.snapshot().residents) == {("slow", 1), ("cola", 1)}
    assert reports[-1] == (2, 2, "")


def test_a_version_retired_while_others_load_is_not_loaded(tmp_path: Path) -> None:
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
    house.settle()
    wanted = house.registry.state().generation
    state = next(after for _, after in house.changes if after.wanted == wanted)  # before the canary is loaded
    assert state.routes == {}
    assert {state.resolve("sst2", key=f"{number}").version for number in range(20)} == {1}
    assert state.shadows("sst2", "production", 1) == ()
    state = house.settle()
    assert state.resolve("sst2", key="a").version == 2
    assert [resident.version for resident in state.shadows("sst2", "production", 2)] == [3]
    house.registry.set_route("sst2", "production", Route())
    assert house.settle().resolve("sst2", key="a").version == 1


def test_the_share_of_a_version_that_does_not_load_goes_to_the_aliass_version(patient: House) -> None:
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


def test_an_unreachable_registry_is_logged_once_and_followed_when_it_is_back(house: House, caplog) -> None:
    house.publish()
    house.settle()
    house.flaky.away = True
    read = house.value("sidecast_registry_read_timestamp_seconds")
    with caplog.at_level(logging.WARNING, "serving.versions.reconciler"):
        for _ in range(5):
            house.reconciler.step()
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1
    assert house.pool.resolve("sst2").version == 1
    assert house.value("sidecast_registry_read_timestamp_seconds") == read
    house.publish(alias="production")
    house.flaky.away = False
    assert house.settle().resolve("sst2").version == 2
    assert (house.value("sidecast_registry_read_timestamp_seconds") or 0) > (read or 0)


def test_start_fails_with_an_error_if_the_registry_is_unreachable(house: House) -> None:
    house.flaky.away = True
    with pytest.raises(StoreFailed):
        house.reconciler.start()


def test_a_damaged_commit_does_not_stop_versions_that_were_valid_before(house: House, caplog) -> None:
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


def test_a_listener_that_raises_does_not_stop_the_reconciler(tmp_path: Path, caplog) -> None:
    house = House(tmp_path, on_change=lambda before, after: 1 / 0)  # type: ignore[arg-type, return-value]
    house.publish()
    assert house.settle().resolve("sst2").version == 1
    assert "the callback after a change of the pool failed" in caplog.text


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


def test_memory_is_tidied_after_residents_came_or_went_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tidied: list[int] = []
    house = House(tmp_path, tidy=lambda: tidied.append(len(house.pool.snapshot().residents)))
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
