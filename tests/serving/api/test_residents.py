"""What a server tells of the versions that it has loaded."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import Client
from serving.client.errors import UnknownTaskError
from side_registry.errors import StoreFailed
from side_registry.servers import Announced
from tests.serving.api_kit import SST2, TWEETS, Parlour


@pytest.fixture
def parlour(tmp_path: Path) -> Iterator[Parlour]:
    parlour = Parlour(tmp_path, (SST2, TWEETS))
    parlour.publish(SST2, seed=1)
    with parlour.open():
        yield parlour


def test_each_loaded_version_has_its_device_its_bytes_and_when_it_was_loaded_and_asked(parlour: Parlour) -> None:
    with Client(parlour.address) as client:
        before = client.residents()
        client.predict("sst2:2", ["a film"])
        client.predict("sst2:2", ["a film"])
        _, asked, tweets = client.residents().residents
        assert client.residents("tweets").residents == (tweets,)
    assert (before.device, before.server.address, before.others) == ("cpu", parlour.address, ())
    assert [(one.task, one.version, one.bytes) for one in before.residents] == [
        ("sst2", 1, 1),
        ("sst2", 2, 1),
        ("tweets", 1, 1),
    ]
    assert all(one.last_asked is None and one.requests == 0 for one in before.residents)
    assert (asked.version, asked.requests, tweets.requests) == (2, 2, 0)
    assert asked.since is not None
    assert asked.last_asked is not None
    assert asked.since <= asked.last_asked
    assert abs(asked.last_asked.timestamp() - time.time()) < 600


def test_other_servers_of_the_registry_are_named(parlour: Parlour) -> None:
    parlour.registry.announce(Announced(id="other", address="far:8001", generation=1, counter=0))
    with Client(parlour.address) as client:
        assert [(one.id, one.address) for one in client.residents().others] == [("other", "far:8001")]
        with pytest.raises(UnknownTaskError):
            client.residents("nope")


def test_a_server_tells_of_itself_while_the_registry_is_out_of_reach(
    parlour: Parlour, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[Announced]:
        raise StoreFailed("there", "servers", "no answer")

    monkeypatch.setattr(parlour.registry, "servers", fail)
    with Client(parlour.address) as client:
        told = client.residents()
    assert (len(told.residents), told.others) == (3, ())
