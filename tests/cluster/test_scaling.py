"""Replicas follow the calls, to none where that is allowed: our policy in Ray's controller, on a real cluster."""

import pytest

from tests.cluster.kit import SOON_S, Fleet, traffic
from tests.conformance.cluster import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture
def fleet(fleet_of_all: Fleet) -> Fleet:
    return fleet_of_all


def test_replicas_follow_the_calls_to_none_and_back_and_none_fails(fleet: Fleet) -> None:
    scaling = {"min_replicas": 0, "initial_replicas": 1, "max_replicas": 2}
    delays = {"upscale_delay_s": 1, "downscale_delay_s": 1}
    fleet.cluster.apply(fleet.settings, cpus=0.5, autoscaling={"target_requests": 1, **scaling, **delays})
    wait_until(fleet.cluster.running, SOON_S)
    with traffic(fleet, callers=8, retry=False) as seen:
        wait_until(lambda: len(fleet.serving()) == 2, SOON_S)
    assert seen.failed == []
    wait_until(lambda: fleet.whole(0), SOON_S)
    with fleet.client(retry=False) as client:
        assert client.predict("sst2", ["a gripping film"], timeout=SOON_S).answers
    assert len(fleet.serving()) == 1
