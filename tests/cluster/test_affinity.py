"""Calls that go by their input: equal ones meet the same replica's cache, through a real HAProxy."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from serving.client.client import Client
from serving.cluster.local_cluster import AFFINITY
from tests.cluster.kit import SOON_S, Fleet, environment
from tests.conformance.cluster import Cluster, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

INPUTS = [f"text {number}" for number in range(40)]
TIMES = 3


def test_equal_inputs_meet_one_cache_and_all_replicas_have_some(tiny_t5: Path, tmp_path: Path) -> None:
    with Cluster(cpus=4, environment=environment() | AFFINITY) as cluster:
        fleet = Fleet(cluster, tiny_t5, tmp_path)
        fleet.publish()
        fleet.deploy(replicas=2)
        statuses = cluster.statuses()
        with fleet.client() as client:
            wait_until(lambda: _both_are_reached(fleet, client, statuses), SOON_S)
            before = _counts(fleet, statuses)
            for _ in range(TIMES):
                for text in INPUTS:
                    assert client.predict("sst2", [text]).version == 1
        counts = _counts(fleet, statuses) - before
    hits, misses = counts.sum(axis=0)
    assert hits + misses == TIMES * len(INPUTS)
    assert misses <= 1.1 * len(INPUTS), "by load it would be almost twice as many"  # a proxy may not yet know of an end
    assert counts.all(), "each replica has some of the inputs"


def _both_are_reached(fleet: Fleet, client: Client, statuses: list[dict[str, Any]]) -> bool:
    """HAProxy hears of a replica a little after it runs."""
    for number in range(8):
        client.predict("sst2", [f"another {number} {time.monotonic()}"])
    return bool(_counts(fleet, statuses).any(axis=1).all())


def _counts(fleet: Fleet, statuses: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
    """Hits and misses of each replica's cache."""
    names = ("sidecast_cache_hits_total", "sidecast_cache_misses_total")
    return np.array([[fleet.metric(each, name) for name in names] for each in statuses])
