"""`sidecast tasks --where`: what every server of a registry tells, and those that do not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from side_registry.servers import Announced
from tests.serving.api_kit import SST2, Parlour
from tests.sidecast.cli.house import NOBODY
from tests.sidecast.cli_kit import sidecast


@pytest.fixture
def parlour(tmp_path: Path) -> Iterator[Parlour]:
    parlour = Parlour(tmp_path, (SST2,))
    with parlour.open():
        yield parlour


@pytest.mark.parametrize("by", ["--server", "--registry"])
def test_each_version_has_its_server_and_a_server_that_does_not_tell_is_named(parlour: Parlour, by: str) -> None:
    parlour.registry.announce(Announced(id="gone", address=NOBODY, generation=1, counter=0))
    parlour.registry.announce(Announced(id="ray", address="10.0.0.1/abc", generation=1, counter=0))
    where = parlour.address if by == "--server" else parlour.registry.url
    ran = sidecast("tasks", "--where", by, where)
    assert ran.code == 0
    [row] = ran.out.splitlines()[1:]
    assert row.split()[:4] == ["sst2", "1", parlour.address, "cpu"]
    assert "never" in row
    assert f"Warning: {NOBODY} did not tell" in ran.err
    assert "Warning: 10.0.0.1/abc is a replica on Ray Serve" in ran.err
    document = sidecast("tasks", "--where", by, where, "--json").document
    assert [one["address"] for one in document["servers"]] == [parlour.address]
    assert document["servers"][0]["residents"][0]["bytes"] == 1
    assert sorted(fault["address"] for fault in document["faults"]) == ["10.0.0.1/abc", NOBODY]
