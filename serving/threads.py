"""Torch work beside the device thread, on threads that end with it.

GNU OpenMP keeps a pool of workers for every thread that ever ran a parallel region, for as long as that thread lives.
Once the pools outnumber the cores it stops spinning at barriers, and each of the device thread's many small regions
waits for a wake-up: on two cores every batch took twice as long, because versions had been loaded on another thread.
"""

import contextlib
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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


def run_apart(work: Callable[..., Result], *args: object) -> Result:
    """Call `work` on a thread of its own that ends with it; returns what it returns, raises what it raises."""
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as thread:
        return thread.submit(work, *args).result()
