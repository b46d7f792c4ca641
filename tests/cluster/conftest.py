"""One cluster for the tests of this folder; every test deploys the application as it needs it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kit import Fleet
from tests.conformance.cluster import Cluster


@pytest.fixture(scope="package")
def fleet_of_all(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The shared fleet, with one published version. Its deployment is what the test before left."""
    with Cluster() as cluster:
        fleet = Fleet(cluster, tiny_t5, tmp_path_factory.mktemp("fleet"))
        fleet.publish()
        yield fleet
