"""A server tells its registry that it is there, and what it serves, whatever the store does meanwhile."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serving.versions.presence import Presence, address_of
from side_registry import StoreFailed
from side_registry.servers import Announced
from tests.sidecast.cli_kit import wait_until


class Store:
    """Records announcements; fails or blocks on demand."""

    def __init__(self) -> None:
        self.announced: list[Announced] = []
        self.there: dict[str, Announced] = {}
        self.refuses = False
        self.open = threading.Event()
        self.open.set()

    def announce(self, server: Announced) -> None:
        self._take()
        self.announced.append(server)
        self.there[server.id] = server

    def withdraw(self, id: str) -> None:
        self._take()
        self.there.pop(id, None)

    def _take(self) -> None:
        self.open.wait(10)
        if self.refuses:
            raise StoreFailed("memory", "servers/x.json", "read-only")


@contextmanager
def present(store: Store, served: list[int], beat_s: float = 60.0) -> Iterator[Presence]:
    presence = Presence(store, "127.0.0.1:8001", lambda: served[-1], beat_s=beat_s)
    presence.start()
    try:
        yield presence
    finally:
        presence.stop()


def test_a_server_announces_itself_at_start_and_at_every_change_and_withdraws_at_the_end() -> None:
    store, served = Store(), [4]
    with present(store, served) as presence:
        assert [server.generation for server in store.announced] == [4]
        served.append(5)
        wait_until(lambda: len(store.announced) == 2)
        assert [(announced.id, announced.address) for announced in store.announced] == [
            (presence.id, "127.0.0.1:8001")
        ] * 2
        assert [(announced.generation, announced.counter) for announced in store.announced] == [(4, 0), (5, 1)]
        assert store.announced[0].started == store.announced[1].started != ""
    assert store.there == {}


def test_a_server_announces_itself_periodically() -> None:
    store = Store()
    with present(store, [4], beat_s=0.01):
        wait_until(lambda: len(store.announced) >= 3)
    assert [announced.counter for announced in store.announced[:3]] == [0, 1, 2]
    assert {announced.generation for announced in store.announced} == {4}


def test_two_servers_with_one_address_are_distinct() -> None:
    store = Store()
    with present(store, [1]), present(store, [2]):
        assert sorted(server.generation for server in store.there.values()) == [1, 2]
    assert store.there == {}


def test_before_the_first_load_generation_0_is_announced() -> None:
    store = Store()
    with present(store, [-1], beat_s=60):
        assert [server.generation for server in store.announced] == [0]
    assert len(store.announced) == 1


def test_a_failing_store_is_logged_once_and_so_is_its_recovery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, served = Store(), [1]
    store.refuses = True
    with caplog.at_level(logging.WARNING), present(store, served, beat_s=0.01) as presence:
        for generation in range(2, 6):
            served.append(generation)
            wait_until(lambda: presence.now.counter > len(served))
        assert [record.message for record in caplog.records] == [
            "the registry does not take this server's presence, so no writer waits for it: "
            "the registry's store memory failed at 'servers/x.json': read-only; check access to it and try again"
        ]
        store.refuses = False
        wait_until(lambda: bool(store.there))
        assert store.there[presence.id].generation == 5
        wait_until(lambda: len(caplog.records) == 2)
    assert caplog.records[1].message == "the registry takes this server's presence again"


def test_a_hanging_store_does_not_delay_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.versions.presence.STOP_S", 0.05)
    store, served = Store(), [1]
    presence = Presence(store, "here:1", lambda: served[-1])
    presence.start()
    store.open.clear()
    presence.stop()
    assert presence._thread.is_alive()  # it would wait for the store
    store.open.set()
    presence._thread.join(10)
    assert store.there == {}


def test_stop_without_start_does_nothing() -> None:
    Presence(Store(), "here:1", lambda: 1).stop()


def test_an_address_is_one_that_others_can_tell_apart() -> None:
    assert address_of("127.0.0.1", 8001) == "127.0.0.1:8001"
    assert address_of("::1", 8001) == "[::1]:8001"
    assert address_of("0.0.0.0", 8001) == address_of("::", 8001) == f"{socket.gethostname()}:8001"
