"""What fails and what does not when parts of a cluster end, while calls go on. docs/serving/faults.md promises it."""

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import psutil
import pytest

from tests.cluster.kit import CONTROLLER, HAPROXY, PROXY, SOON_S, Fleet, Seen, assert_unavailable, traffic
from tests.conformance.cluster import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

AWAY_S = 5
"""Of a registry."""


@pytest.fixture
def fleet(fleet_of_all: Fleet) -> Fleet:
    """With two replicas, whatever the test before did."""
    fleet_of_all.deploy(replicas=2)
    return fleet_of_all


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_replica_that_ends_takes_only_its_calls_in_flight_along_and_none_of_callers_who_retry(
    fleet: Fleet, how: signal.Signals
) -> None:
    victim = fleet.serving()[0]
    with traffic(fleet, callers=3, retry=False) as seen, traffic(fleet, callers=3) as retried:
        os.kill(victim, how)
        wait_until(lambda: not psutil.pid_exists(victim), SOON_S)
        gone = time.monotonic()
        wait_until(lambda: seen.answered_since(gone), SOON_S)
        wait_until(lambda: fleet.whole() and victim not in fleet.serving(), SOON_S)
    assert retried.failed == []
    assert_unavailable(seen)
    if how is signal.SIGKILL:
        assert [call for call in seen.failed if call.began > gone] == []


@pytest.mark.parametrize("name", [HAPROXY, PROXY])
def test_a_killed_proxy_comes_back_by_itself(fleet: Fleet, name: str) -> None:
    replicas = fleet.serving()
    with traffic(fleet, retry=False) as seen:
        killed = time.monotonic()
        fleet.kill(name)
        wait_until(lambda: bool(seen.failed) and seen.answered_since(seen.failed[-1].began), SOON_S)
    assert_unavailable(seen)
    assert all(call.ended >= killed for call in seen.failed)
    assert fleet.serving() == replicas


def test_calls_go_on_without_the_controller(fleet: Fleet) -> None:
    replicas = fleet.serving()
    with traffic(fleet, retry=False) as seen:
        fleet.kill(CONTROLLER)
        version = fleet.publish()
        wait_until(lambda: _version(seen) == version, SOON_S)
        wait_until(lambda: fleet.runs(), SOON_S)
    assert seen.failed == []
    assert sorted(fleet.serving()) == sorted(replicas)


def test_a_registry_that_is_away_stops_nothing_but_changes_and_its_last_read_grows_old(fleet: Fleet) -> None:
    here = fleet.folder / "registry"
    away = fleet.folder / "away"
    replicas = fleet.cluster.statuses()
    with traffic(fleet, retry=False) as seen:
        here.rename(away)
        here.write_text("a file, so that nothing can be read or written there")
        wait_until(lambda: min(_unread_s(fleet, replica) for replica in replicas) > AWAY_S, SOON_S)
        back = time.monotonic()
        wait_until(lambda: seen.answered_since(back), SOON_S)
        here.unlink()
        away.rename(here)
        version = fleet.publish()
        wait_until(lambda: _version(seen) == version, SOON_S)
        wait_until(lambda: max(_unread_s(fleet, replica) for replica in replicas) < AWAY_S, SOON_S)
    assert seen.failed == []
    with fleet.client() as client:
        assert client.await_generation(fleet.registry.state().generation, timeout=10).served
    assert {each["generation"] for each in fleet.cluster.statuses()} == {fleet.registry.state().generation}


def test_a_version_that_no_replica_can_load_leaves_the_one_before_serving(fleet: Fleet) -> None:
    with traffic(fleet, retry=False) as seen:
        wait_until(lambda: len(seen.answered) > 20, SOON_S)
        good = _version(seen)
        bad = fleet.publish(change=lambda side: [each.add_(1.0) for each in side.parameters()])
        wait_until(lambda: all(each["failed"] for each in fleet.cluster.statuses()), 20)
        with fleet.client() as client:
            [told] = client.task("sst2").versions[-1:]
            serving = client.task("sst2").serving
        fleet.registry.rollback("sst2", "production")
    assert (told.version, told.resident, serving["production"]) == (bad, False, good)
    assert "golden" in told.failure or "answers" in told.failure
    assert seen.failed == []
    assert {each.version for each in seen.calls[-5:]} == {good}


def _unread_s(fleet: Fleet, status: Mapping[str, Any]) -> float:
    """Seconds since the registry was read: what the alert SidecastRegistryAway compares."""
    return time.time() - fleet.metric(status, "sidecast_registry_read_timestamp_seconds")


def _version(seen: Seen) -> int | None:
    return seen.answered[-1].version
