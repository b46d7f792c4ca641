"""Torch work beside the device thread, on threads that end with it.

GNU OpenMP keeps a pool of workers for every thread that ever ran a parallel region, for as long as that thread lives.
Once the pools outnumber the cores it stops spinning at barriers, and each of the device thread's many small regions
waits for a wake-up: on two cores every batch took twice as long, because versions had been loaded on another thread.
"""

import contextlib
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

Result = TypeVar("Result")

ARENA_MAX = -8
"""glibc's M_ARENA_MAX."""


def share_heaps(count: int = 4) -> None:
    """Have all threads take their memory from so few heaps. Call it before there are many; glibc's alone, else nothing.

    Each of the store's many threads would otherwise get one of up to eight a core, and what a version's file took there
    stays there: a server of a small backbone grew by 50 MB in 60 changes of its registry.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, count)


def trim_heaps() -> None:
    """Give back to the system what is free within the heaps; glibc's alone, else nothing.

    Takes milliseconds, without the interpreter's lock.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def run_apart(work: Callable[..., Result], *args: object) -> Result:
    """Call `work` on a thread of its own that ends with it; returns what it returns, raises what it raises.

    Work that hangs does not keep the process from ending.
    """
    result: Future[Result] = Future()
    thread = threading.Thread(target=_run, args=(result, work, args), name="apart", daemon=True)
    thread.start()
    thread.join()
    try:
        return result.result()
    finally:
        del result  # an error would hold it, and with it itself and all that it was raised among


def run_aside(work: Callable[..., Result], *args: object) -> Result:
    """As `run_apart`, taking one core at most: the others are the device thread's.

    Torch's number of threads is each thread's own, but a new thread begins with what was set last, so it is set back;
    no other thread should meet torch for the first time meanwhile.
    """
    return run_apart(_on_one_core, work, *args)


def _on_one_core(work: Callable[..., Result], *args: object) -> Result:
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(*args)
    finally:
        torch.set_num_threads(usual)


def _run(result: "Future[Result]", work: Callable[..., Result], args: tuple[object, ...]) -> None:
    try:
        result.set_result(work(*args))
    except BaseException as error:  # its caller's, who waits for it
        result.set_exception(error)
        del result
