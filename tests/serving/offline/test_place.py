"""Number, device and size of a run's replicas, by what the nodes of a cluster have."""

from typing import Any

import pytest

from serving.offline.errors import ClusterTooSmall
from serving.offline.placing import Replicas, place


class TestPlace:
    @pytest.mark.parametrize(
        ("asked", "nodes", "shards", "found"),
        [
            ({}, [(8, 0)], 9, (1, "cpu", 8, 0.0)),
            ({"count": 3}, [(8, 0)], 9, (3, "cpu", 2, 0.0)),
            ({"count": 3}, [(8, 0)], 2, (2, "cpu", 4, 0.0)),
            ({"count": 2, "cpus": 1}, [(8, 0)], 9, (2, "cpu", 1, 0.0)),
            ({}, [(8, 2)], 9, (2, "cuda", 1, 1.0)),
            ({"gpus": 0.5}, [(8, 2)], 9, (4, "cuda", 1, 0.5)),
            ({"gpus": 0.4}, [(8, 2)], 9, (4, "cuda", 1, 0.4)),
            ({"gpus": 2.0}, [(8, 4)], 9, (2, "cuda", 1, 2.0)),
            ({"gpus": 2.0}, [(8, 3), (8, 3)], 9, (2, "cuda", 1, 2.0)),
            ({"device": "cpu"}, [(8, 2)], 9, (1, "cpu", 8, 0.0)),
            ({}, [(8, 0), (8, 0)], 9, (2, "cpu", 8, 0.0)),
            ({}, [(0, 0), (8, 0)], 9, (1, "cpu", 8, 0.0)),
            ({"count": 1}, [(8, 0), (8, 0)], 9, (1, "cpu", 8, 0.0)),
            ({"count": 3}, [(8, 0), (8, 0)], 9, (3, "cpu", 4, 0.0)),
            ({"count": 3}, [(4, 0), (16, 0)], 9, (3, "cpu", 5, 0.0)),
        ],
    )
    def test_replicas_take_what_is_there(self, asked: dict[str, Any], nodes: Any, shards: int, found: Any):
        placed = place(Replicas(**asked), [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes], shards)
        assert (placed.count, placed.device, placed.cpus, placed.gpus) == found

    @pytest.mark.parametrize(
        ("asked", "line"),
        [
            ({"device": "cuda"}, "1 replicas of 1 CPUs and 1 GPUs are wanted, the cluster's nodes hold 0"),
            ({"count": 5}, "5 replicas of 1 CPUs are wanted, the cluster's nodes hold 4"),
            ({"count": 3, "cpus": 2}, "3 replicas of 2 CPUs are wanted, the cluster's nodes hold 2"),
            ({"cpus": 4}, "2 replicas of 4 CPUs are wanted, the cluster's nodes hold 0"),
        ],
    )
    def test_too_many(self, asked: dict[str, Any], line: str):
        with pytest.raises(ClusterTooSmall) as caught:
            place(Replicas(**asked), [{"CPU": 2.0}, {"CPU": 2.0}], 9)
        assert line in str(caught.value)
