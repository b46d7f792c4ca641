"""Work on a thread of its own."""

import gc
import threading
import weakref

import pytest
import torch

from serving.engine.device import run_apart, run_aside, trim_heaps


class Load:
    """Something large."""


def fail(held: "list[weakref.ref[Load]]") -> None:
    load = Load()
    held.append(weakref.ref(load))
    raise KeyError("boom")


def test_it_ends_with_its_thread_which_no_process_waits_for() -> None:
    thread = run_apart(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert not thread.is_alive()
    assert run_apart(max, 1, 2) == 2


def test_what_it_raises_is_raised_and_holds_nothing_afterwards() -> None:
    held: list[weakref.ref[Load]] = []
    gc.disable()
    try:
        with pytest.raises(KeyError, match="boom"):
            run_apart(fail, held)
        assert held[0]() is None
    finally:
        gc.enable()


def test_what_runs_aside_takes_one_core_and_leaves_the_others_as_they_were() -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert run_aside(torch.get_num_threads) == 1
        with pytest.raises(KeyError):
            run_aside(fail, [])
        assert (torch.get_num_threads(), run_apart(torch.get_num_threads)) == (3, 3)
    finally:
        torch.set_num_threads(usual)


def test_heaps_are_trimmed_wherever_that_is_known() -> None:
    trim_heaps()
