"""Many requests to a store at once: hundreds of objects, each a round trip away."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")
Step = Callable[[], None]
"""Called after each item of a long piece of work."""
Progress = Callable[[str, int], Step]
"""Called before a long piece of work, with the name and the number of its items; returns what to call after each."""


def no_progress(what: str, count: int) -> Step:
    """The Progress of a caller that shows none."""
    return lambda: None


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], step: Step, max_threads: int | None = None
) -> Iterator[Result]:
    """Results in the order of `items`, from at most THREADS (or `max_threads`) threads. The first failure ends it."""
    with ThreadPoolExecutor(min(max_threads or THREADS, THREADS), thread_name_prefix="store") as threads:
        for result in threads.map(function, items):
            step()
            yield result
