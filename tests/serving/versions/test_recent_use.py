"""Which tasks are called is noted in the registry, for the server that starts next."""

import logging
import threading
from collections.abc import Sequence

import pytest

from serving.versions.recent_use import RecentUse
from side_registry import StoreFailed
from tests.sidecast.cli_kit import wait_until


class Store:
    """Keeps the note; fails on demand."""

    def __init__(self, *tasks: str) -> None:
        self.tasks = tasks
        self.refuses = False
        self.is_noted = threading.Event()

    def recent_tasks(self) -> tuple[str, ...]:
        self._take()
        return self.tasks

    def note_recent_tasks(self, tasks: Sequence[str]) -> None:
        self._take()
        self.tasks = tuple(tasks)
        self.is_noted.set()

    def _take(self) -> None:
        if self.refuses:
            raise StoreFailed("memory", "hints/recent_tasks.json", "read-only")


def test_the_last_call_comes_first_and_earlier_servers_calls_come_after() -> None:
    recent = RecentUse(Store("qnli", "cola", "mrpc"))
    for task in ("sst2", "cola", "sst2"):
        recent.note(task)
    assert recent.tasks == ("sst2", "cola", "qnli", "mrpc")
    assert recent.earlier == ("qnli", "cola", "mrpc")


def test_the_note_is_written_at_times_and_at_the_end() -> None:
    store = Store()
    recent = RecentUse(store, save_s=0.001)
    recent.note("sst2")
    recent.start()
    assert store.is_noted.wait(60)
    recent.note("cola")
    recent.stop()
    wait_until(lambda: store.tasks == ("cola", "sst2"))


def test_a_server_that_nothing_called_leaves_the_note_as_it_is() -> None:
    store = Store("qnli")
    recent = RecentUse(store)
    recent.start()
    recent.stop()
    assert store.tasks == ("qnli",)
    assert not store.is_noted.is_set()


def test_a_store_that_refuses_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.refuses = True
    with caplog.at_level(logging.WARNING):
        recent = RecentUse(store)
        recent.note("sst2")
        recent.start()
        recent.stop()
    assert recent.earlier == ()
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "which tasks were called last cannot be read",
        "the registry does not take which tasks were called last",
    ]
