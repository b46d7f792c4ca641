"""Torch work beside the device thread, on threads that end with it.

GNU OpenMP keeps a pool of workers for every thread that ever ran a parallel region, for as long as that thread lives.
Once the pools outnumber the cores it stops spinning at barriers, and each of the device thread's many small regions
waits for a wake-up: on two cores every batch took twice as long, because versions had been loaded on another thread.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def run_apart(work: Callable[..., Result], *args: object) -> Result:
    """Call `work` on a thread of its own that ends with it; returns what it returns, raises what it raises."""
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as thread:
        return thread.submit(work, *args).result()
