"""What an operator changes while calls go on: settings, code, the number of replicas. And what a wrong change does."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.api.status import DETAILS_KEY
from serving.client.errors import OverloadedError, UnavailableError
from tests.cluster.kit import SOON_S, Fleet, Seen, assert_unavailable, traffic
from tests.conformance.cluster import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

WITHDRAWN_S = 5.0
"""A replica that ended by itself has told the registry; one that was ended by force is waited for for 30 s."""
LONG_CALLS, LONG_ROWS = 6, 1000
"""Calls, and the rows of each, that a server works on for seconds."""


@pytest.fixture
def fleet(fleet_of_all: Fleet) -> Fleet:
    """With one replica, whatever the test before did."""
    fleet_of_all.deploy(replicas=1)
    return fleet_of_all


def test_an_update_fails_no_call_and_starts_the_new_before_it_stops_the_old(fleet: Fleet) -> None:
    old = fleet.serving()
    with traffic(fleet, retry=False) as seen:
        fleet.apply(1, {"max_batch_rows": 16}, runtime_env={"env_vars": {"CODE": "of another day"}})
        wait_until(lambda: _new_serve(fleet, old), SOON_S)
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in old), SOON_S)
        fleet.wait(1)
        _more(seen)
    assert seen.failed == []


def test_streams_that_only_watch_do_not_hold_the_end_of_their_replica(fleet: Fleet) -> None:
    [old] = fleet.serving()
    with grpc.insecure_channel(fleet.cluster.address) as channel:
        changes = sidecast_pb2_grpc.AdminStub(channel).Watch(pb.WatchRequest())
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(changes)
        next(health)
        fleet.apply(replicas=1, settings={"max_batch_rows": 8})
        wait_until(lambda: not psutil.pid_exists(old), SOON_S)
        assert DETAILS_KEY in {key for key, _ in _end(changes).trailing_metadata()}, "it ended by itself"
        assert "may be about to end" in _end(health).details()
    wait_until(lambda: len(fleet.registry.servers()) == 1, WITHDRAWN_S)
    fleet.wait(1)


def _end(stream: Any) -> Any:
    """Of a stream that ends with UNAVAILABLE: its status."""
    with pytest.raises(grpc.RpcError) as ended:
        list(stream)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    return ended.value


def test_more_and_fewer_replicas_fail_no_call_and_restart_none(fleet: Fleet) -> None:
    [first] = fleet.serving()
    with traffic(fleet, callers=6, retry=False) as seen:
        fleet.deploy(replicas=3)
        assert first in fleet.serving()
        fleet.deploy(replicas=1)
        _more(seen)
    assert seen.failed == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_batch_row": 1}, "unknown settings ['max_batch_row']"),  # before a replica starts
        ({"backbone": "/nowhere"}, "/nowhere"),  # when it starts
    ],
    ids=["unknown setting", "no such backbone"],
)
def test_a_deployment_that_cannot_be_says_why_and_the_old_goes_on(
    fleet: Fleet, settings: dict[str, Any], says: str
) -> None:
    old = fleet.serving()
    with traffic(fleet, callers=2, retry=False) as seen:
        fleet.apply(replicas=1, settings=settings)
        wait_until(lambda: fleet.cluster.application()["status"] == "DEPLOY_FAILED", SOON_S)
        _more(seen)
    assert says in _message(fleet)
    assert seen.failed == []
    assert all(psutil.pid_exists(pid) for pid in old)


def test_removing_the_application_answers_the_calls_in_flight(fleet: Fleet) -> None:
    """Calls that the replica works on are answered; later ones fail with UNAVAILABLE."""
    [status] = fleet.cluster.statuses()
    with (
        fleet.client(retry=False) as client,
        ThreadPoolExecutor(LONG_CALLS) as pool,
        traffic(fleet, retry=False) as seen,
    ):
        texts = [[f"text {call} {row}" for row in range(LONG_ROWS)] for call in range(LONG_CALLS)]
        later_s = 10 * SOON_S  # it takes seconds; single rows before make the replica expect minutes, and refuse
        long_calls = [pool.submit(client.predict, "sst2", each, timeout=later_s) for each in texts]
        wait_until(lambda: fleet.metric(status, "sidecast_queue_rows") > LONG_CALLS * LONG_ROWS // 2, SOON_S)
        fleet.remove()
        wait_until(lambda: any(isinstance(call.error, UnavailableError) for call in seen.failed), SOON_S)
        assert [len(call.result()) for call in long_calls] == [LONG_ROWS] * LONG_CALLS
    assert_unavailable(seen, OverloadedError)  # behind the long calls, a short one's deadline may be too near


def test_after_a_shutdown_calls_fail_with_unavailable(fleet: Fleet) -> None:
    with traffic(fleet, retry=False) as seen:
        fleet.shut_down()
        wait_until(lambda: bool(seen.failed), SOON_S)
    assert_unavailable(seen)


def _message(fleet: Fleet) -> str:
    app = fleet.cluster.application()
    return "\n".join([app["message"], *(server["message"] for server in app.get("deployments", {}).values())])


def _new_serve(fleet: Fleet, old: list[int]) -> bool:
    """Whether another replica serves. An AssertionError where none does and the old ones are gone."""
    new = set(fleet.serving()) - set(old)
    assert new or all(psutil.pid_exists(pid) for pid in old)
    return bool(new)


def _more(seen: Seen) -> None:
    now = time.monotonic()
    wait_until(lambda: seen.answered_since(now), SOON_S)
