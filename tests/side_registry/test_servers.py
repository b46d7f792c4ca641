"""Which servers follow a registry: what they tell, who is gone, and waiting until all serve a generation."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from side_registry import Announced, LogReplaced, Registry, RegistryNotFound, State, StoreFailed
from side_registry.servers import FORGOTTEN_S, LEASE_S, MAX_SERVER_BYTES, FailureDetector, Heartbeat, server_path
from tests.side_registry.clock import FakeClock


def server(id: str, generation: int = 0, counter: int = 0) -> Announced:
    return Announced(id=id, address=f"127.0.0.1:{len(id)}", generation=generation, counter=counter, started="2026")


def servers(counters: dict[str, int]) -> list[Announced]:
    return [server(id, counter=counter) for id, counter in counters.items()]


def heartbeats(counters: dict[str, int], late: bool = False) -> list[Heartbeat]:
    return [Heartbeat(server, late) for server in servers(counters)]


def age(registry: Registry, id: str, seconds: float) -> None:
    """Let the store think that an object is older, or, with a negative number, from the future."""
    touch(Path(registry.url, server_path(id)), seconds)


def touch(path: Path, age_s: float) -> None:
    modified = time.time() - age_s
    os.utime(path, (modified, modified))


def ids(registry: Registry) -> list[str]:
    return [found.id for found in registry.servers()]


class TestAnnounce:
    def test_what_a_server_tells_is_read_back(self, registry: Registry):
        assert registry.servers() == []
        registry.announce(server("a", 3))
        registry.announce(server("bb", 4))
        first, second = registry.servers()
        assert (first.id, first.address, first.generation, first.started) == ("a", "127.0.0.1:1", 3, "2026")
        assert (second.id, second.generation) == ("bb", 4)
        assert first.seen is not None

    def test_the_newest_word_counts(self, registry: Registry):
        registry.announce(server("a", 3))
        registry.announce(server("a", 4, counter=1))
        [found] = registry.servers()
        assert (found.generation, found.counter) == (4, 1)

    def test_a_server_withdraws_once_or_twice(self, registry: Registry):
        registry.announce(server("a"))
        registry.withdraw("a")
        registry.withdraw("a")
        assert registry.servers() == []

    def test_it_is_no_part_of_the_registry(self, local: Registry):
        local.announce(server("a", 7))
        assert Registry.open(local.url).state() == State()

    @pytest.mark.parametrize("id", ["", "../log/1", "a/b", ".hidden", "x" * 65, "a b"])
    def test_an_id_is_a_plain_word(self, id: str):
        with pytest.raises(ValidationError):
            server(id)

    def test_what_a_newer_program_tells_is_kept(self, registry: Registry):
        registry.announce(Announced.model_validate({**server("a").model_dump(), "region": "north"}))
        assert (registry.servers()[0].model_extra or {})["region"] == "north"

    def test_a_store_that_cannot_be_written_says_so(self, local: Registry):
        Path(local.url, "servers").write_text("a file where a folder should be")
        with pytest.raises(StoreFailed, match="servers/a"):
            local.announce(server("a"))


class TestDeletedRegistry:
    def test_nothing_is_written_where_the_registry_was(self, local: Registry, run: Callable[..., Path]):
        shutil.rmtree(local.url)
        for write in (lambda: local.announce(server("a")), lambda: local.publish(run(1))):
            with pytest.raises(RegistryNotFound):
                write()
        assert not Path(local.url).exists()

    def test_nor_into_another_one_in_its_place(self, local: Registry, run: Callable[..., Path]):
        shutil.rmtree(local.url)
        anew = Registry.open(local.url, create=True)
        for write in (lambda: local.announce(server("a")), lambda: local.publish(run(1))):
            with pytest.raises(LogReplaced):
                write()
        assert anew.servers() == []
        assert anew.store.list("blobs") == []


class TestForeignObjects:
    @pytest.mark.parametrize(
        ("path", "content"),
        [
            ("servers/a.json", b""),
            ("servers/a.json", b"\x00\xff"),
            ("servers/a.json", server("a").to_json()[:-9]),
            ("servers/a.json", server("another").to_json()),
            ("servers/a.json", server("a").to_json().replace(b'"counter":0', b'"counter":-1')),
            ("servers/a.json", b" " * (MAX_SERVER_BYTES + 1)),
            ("servers/deep/a.json", server("a").to_json()),
            ("servers/a.json.bak", server("a").to_json()),
            ("servers/notes", b"mine"),
        ],
    )
    def test_they_are_passed_over(self, registry: Registry, path: str, content: bytes):
        registry.announce(server("bb", 5))
        registry.store.overwrite(path, content)
        assert ids(registry) == ["bb"]
        assert registry.await_generation(5, timeout_s=0).served


class TestLease:
    def test_one_far_behind_the_others_is_gone(self, local: Registry):
        for id in ("a", "bb", "ccc"):
            local.announce(server(id))
        age(local, "a", LEASE_S + 5)
        age(local, "bb", LEASE_S - 5)
        assert ids(local) == ["bb", "ccc"]

    @pytest.mark.parametrize("seconds", [-10 * 365 * 86_400, 0, 3_600, 10 * 365 * 86_400])
    def test_only_times_of_the_store_are_compared(self, local: Registry, seconds: float):
        """Whatever our clock or the store's says, a pair that was written together stays together."""
        for id in ("a", "bb"):
            local.announce(server(id, generation=1, counter=5))
        for id in ("a", "bb"):
            age(local, id, seconds)
        assert ids(local) == ["a", "bb"]
        assert local.await_generation(1, timeout_s=0).served

    def test_a_foreign_object_of_the_future_calls_nobody_gone(self, local: Registry):
        local.announce(server("a"))
        Path(local.url, "servers", "notes").write_text("mine")
        touch(Path(local.url, "servers", "notes"), -9_999)
        assert ids(local) == ["a"]

    def test_a_heartbeat_of_the_future_makes_no_other_one_late(self, local: Registry):
        for id in ("a", "bb", "dead"):
            local.announce(server(id))
        age(local, "a", -9_999)
        age(local, "dead", LEASE_S + 5)
        assert ids(local) == ["a", "bb"]

    def test_a_heartbeat_of_the_future_is_dead_once_it_was_seen_to_stand_still(self, local: Registry, clock: FakeClock):
        local.announce(server("a", 1))
        age(local, "a", -9_999)
        local.announce(server("bb", 2))
        assert ids(local) == ["a", "bb"]
        clock.sleep(LEASE_S)
        local.announce(server("bb", 2, counter=1))
        assert ids(local) == ["bb"]
        assert local.await_generation(2, timeout_s=0).served
        local.announce(server("a", 2, counter=1))
        assert ids(local) == ["a", "bb"]

    def test_a_new_server_clears_away_what_was_left_long_ago(self, local: Registry):
        for id in ("a", "bb", "future"):
            local.announce(server(id, counter=1))
        age(local, "a", FORGOTTEN_S + 60)
        age(local, "bb", FORGOTTEN_S - 60)
        age(local, "future", -FORGOTTEN_S - 60)
        local.announce(server("ccc", counter=1))
        assert Path(local.url, server_path("a")).exists()
        local.announce(server("ccc", counter=0))
        assert [path.name for path in sorted(Path(local.url, "servers").iterdir())] == ["bb.json", "ccc.json"]

    def test_a_counter_that_stands_still_for_a_lease_is_a_server_gone(self):
        detector = FailureDetector()
        assert detector.alive(heartbeats({"a": 0, "b": 0}), 100) == servers({"a": 0, "b": 0})
        assert detector.alive(heartbeats({"a": 0, "b": 1}), 100 + LEASE_S - 1) == servers({"a": 0, "b": 1})
        assert detector.alive(heartbeats({"a": 0, "b": 1}), 100 + LEASE_S) == servers({"b": 1})

    def test_one_that_was_thought_gone_comes_back(self):
        detector = FailureDetector()
        detector.alive(heartbeats({"a": 0}), 0)
        assert detector.alive(heartbeats({"a": 0}), LEASE_S) == []
        assert detector.alive(heartbeats({"a": 1}), LEASE_S + 1) == servers({"a": 1})

    def test_one_that_the_store_calls_late_lives_when_we_see_it_move(self):
        """A dead server's object of the future makes all others late."""
        detector = FailureDetector()
        assert detector.alive(heartbeats({"a": 0, "b": 0}, late=True), 0) == []
        assert detector.alive(heartbeats({"a": 1, "b": 0}, late=True), 10) == servers({"a": 1})
        assert detector.alive(heartbeats({"a": 1, "b": 0}, late=True), 10 + LEASE_S) == []

    @given(st.lists(st.tuples(st.floats(0, 60), st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)))))
    @settings(max_examples=30, deadline=None)
    def test_who_lives_is_who_was_new_or_changed_within_the_lease(self, looks: list[tuple[float, dict[str, int]]]):
        detector, now, changed = FailureDetector(), 0.0, dict[str, tuple[int, float]]()
        for passed, counters in looks:
            now += passed
            for id, counter in counters.items():
                if id not in changed or changed[id][0] != counter:
                    changed[id] = counter, now
            living = {id: counter for id, counter in counters.items() if now - changed[id][1] < LEASE_S}
            assert detector.alive(heartbeats(counters), now) == servers(living)


class TestAwaitGeneration:
    def test_nobody_to_wait_for(self, registry: Registry):
        awaited = registry.await_generation(9, timeout_s=0)
        assert (awaited.served, awaited.servers) == (True, ())

    def test_it_looks_once_when_there_is_no_time(self, registry: Registry):
        registry.announce(server("a", 2))
        registry.announce(server("bb", 3))
        assert registry.await_generation(2, timeout_s=0).served
        awaited = registry.await_generation(3, timeout_s=0)
        assert not awaited.served
        assert [(found.id, found.generation) for found in awaited.servers] == [("a", 2), ("bb", 3)]

    def test_it_returns_when_the_last_one_serves_it(self, registry: Registry, clock: FakeClock):
        registry.announce(server("a", 3))
        registry.announce(server("bb", 2))
        words = iter([server("bb", 2, counter=1), server("bb", 4, counter=2)])
        clock.on_sleep = lambda: registry.announce(next(words))
        awaited = registry.await_generation(3, 60, poll_s=2)
        assert awaited.served
        assert {server.generation for server in awaited.servers} == {3, 4}
        assert clock.slept == [2, 2]

    def test_it_does_not_wait_for_who_withdraws(self, registry: Registry, clock: FakeClock):
        registry.announce(server("a", 3))
        registry.announce(server("bb", 2))
        clock.on_sleep = lambda: registry.withdraw("bb")
        awaited = registry.await_generation(3, 60)
        assert [server.id for server in awaited.servers] == ["a"]
        assert clock.slept == [0.1]

    def test_it_does_not_wait_for_the_dead(self, registry: Registry, clock: FakeClock):
        """The last server was killed: nothing in the store is newer, only our own time passes."""
        registry.announce(server("a", 2))
        awaited = registry.await_generation(3, timeout_s=60, poll_s=10)
        assert (awaited.served, awaited.servers) == (True, ())
        assert sum(clock.slept) == LEASE_S

    def test_it_gives_up_when_time_is_up_whatever_the_wall_clock_says(
        self, registry: Registry, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ):
        registry.announce(server("a", 2))
        jumps = iter(range(0, 10**9, 10**6))
        monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
        awaited = registry.await_generation(3, timeout_s=5, poll_s=2)
        assert not awaited.served
        assert [server.id for server in awaited.servers] == ["a"]
        assert clock.slept == [2, 2, 1]
