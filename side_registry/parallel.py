"""Many requests to a store at once: hundreds of objects, each a round trip away."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 16

Given = TypeVar("Given")
Made = TypeVar("Made")
Step = Callable[[], None]
"""Called when one of many things is done."""
Progress = Callable[[str, int], Step]
"""Told what is done next and how many of it there are; gives what to call after each."""


def unseen(what: str, count: int) -> Step:
    """Progress that nobody watches."""
    return lambda: None


def at_once(
    work: Callable[[Given], Made], given: Iterable[Given], step: Step, most: int | None = None
) -> Iterator[Made]:
    """The results, in the order of `given`; `most` bounds how many are worked on. The first failure ends it."""
    with ThreadPoolExecutor(min(most or THREADS, THREADS), thread_name_prefix="store") as threads:
        for made in threads.map(work, given):
            step()
            yield made
