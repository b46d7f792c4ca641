"""Calls with a time limit: their results, and that a few that hang cost a few threads and no more."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from side_registry.time_limit import MAX_HANGING, Hangs, TimeLimit
from tests.sidecast.cli_kit import wait_until


@pytest.fixture
def opened() -> Iterator[threading.Event]:
    """An event that a call hangs on; set at the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


def test_results_and_exceptions_are_the_calls_own():
    limit = TimeLimit()
    assert [limit.call(partial(abs, number), 60) for number in range(3)] == [0, 1, 2]
    with pytest.raises(FileNotFoundError, match="mine"):
        limit.call(lambda: (_ for _ in ()).throw(FileNotFoundError("mine")), 60)


def test_calls_one_after_the_other_share_a_thread():
    limit = TimeLimit()
    before = threading.active_count()
    for _ in range(100):
        limit.call(lambda: None, 60)
    assert threading.active_count() <= before + 1


def test_a_call_that_hangs_is_left_and_others_go_on(opened: threading.Event):
    limit = TimeLimit()
    with pytest.raises(Hangs, match=r"within 0\.01 s"):
        limit.call(opened.wait, 0.01)
    assert limit.hanging == 1
    assert limit.call(lambda: 7, 60) == 7
    opened.set()
    wait_until(lambda: limit.hanging == 0)


def test_past_so_many_that_hang_none_is_made_until_one_ends(opened: threading.Event):
    limit = TimeLimit()
    for _ in range(MAX_HANGING):
        with pytest.raises(Hangs):
            limit.call(opened.wait, 0.001)
    threads, made = threading.active_count(), list[int]()
    for _ in range(50):
        with pytest.raises(Hangs, match=f"{MAX_HANGING} earlier calls"):
            limit.call(lambda: made.append(1), 60)
    assert (made, threading.active_count()) == ([], threads)
    assert TimeLimit().call(lambda: 7, 60) == 7  # another store is not affected
    opened.set()
    wait_until(lambda: limit.hanging == 0)
    limit.call(lambda: made.append(1), 60)
    assert made == [1]
