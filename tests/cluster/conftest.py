"""A cluster of its own for each file of tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kit import Fleet, environment
from tests.conformance.cluster import Cluster


@pytest.fixture(scope="module")
def fleet_of_all(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """With one version published and nothing deployed."""
    with Cluster(cpus=4, environment=environment()) as cluster:
        fleet = Fleet(cluster, tiny_t5, tmp_path_factory.mktemp("fleet"))
        fleet.publish()
        yield fleet
