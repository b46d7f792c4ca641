"""Replicas follow the calls, to none where that is allowed: our policy in Ray's controller, on a real cluster."""

from typing import Any

import pytest

from tests.cluster.kit import SOON_S, Fleet, traffic
from tests.conformance.cluster import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture
def fleet(fleet_of_all: Fleet) -> Fleet:
    return fleet_of_all


def deploy(fleet: Fleet, **autoscaling: Any) -> None:
    scaling = {"max_replicas": 2, "target_requests": 3, "upscale_delay_s": 1, "downscale_delay_s": 5} | autoscaling
    fleet.cluster.apply(fleet.settings, cpus=0.5, autoscaling=scaling)
    wait_until(fleet.cluster.running, SOON_S)


def test_more_calls_more_replicas_and_back_and_none_fails(fleet: Fleet) -> None:
    deploy(fleet, min_replicas=1)
    wait_until(lambda: fleet.whole(1), SOON_S)
    with traffic(fleet, callers=8, retry=False) as seen:
        wait_until(lambda: len(fleet.serving()) == 2, SOON_S)
    assert seen.failed == []
    with traffic(fleet, callers=1, retry=False, pause_s=0.05) as seen:  # one without a pause may fill a device
        wait_until(lambda: fleet.whole(1), SOON_S)
    assert seen.failed == []


def test_nobody_calls_and_nothing_runs_until_somebody_does(fleet: Fleet) -> None:
    deploy(fleet, min_replicas=0, initial_replicas=1)
    wait_until(lambda: fleet.whole(0), SOON_S)
    with fleet.client(retry=False) as client:
        assert client.predict("sst2", ["a gripping film"], timeout=SOON_S).answers
    assert len(fleet.serving()) == 1
