"""Calls that go by their input: equal ones meet the same replica's cache, through a real HAProxy."""

from pathlib import Path

import pytest

from serving.deploying_local import AFFINITY
from tests.cluster.kit import Fleet, environment
from tests.conformance.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

INPUTS = [f"text {number}" for number in range(40)]
TIMES = 3


def test_equal_inputs_meet_one_cache_and_all_replicas_have_some(tiny_t5: Path, tmp_path: Path) -> None:
    with Cluster(cpus=4, environment=environment() | AFFINITY) as cluster:
        fleet = Fleet(cluster, tiny_t5, tmp_path)
        fleet.publish()
        fleet.deploy(replicas=2)
        with fleet.client() as client:
            for _ in range(TIMES):
                for text in INPUTS:
                    assert client.predict("sst2", [text]).version == 1
        counts = [
            [fleet.metric(each, f"sidecast_cache_{name}_total") for name in ("hits", "misses")]
            for each in cluster.statuses()
        ]
    hits, misses = map(sum, zip(*counts, strict=True))
    assert (hits, misses) == ((TIMES - 1) * len(INPUTS), len(INPUTS))
    assert all(missed for _, missed in counts)
