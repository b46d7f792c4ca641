"""The C library's heaps: what they keep, and how many there are. All of it does nothing without glibc."""

import contextlib
import ctypes
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
"""glibc's parameters of `mallopt`."""
KEPT = 512 * 2**20
"""Free bytes at the end of a heap that stay with the process."""
PAD = 64 * 2**20
"""Of a heap that is not the first one; it grows by as much at least, which takes no memory before it is used."""
LARGEST_BEFORE = 32 * 2**20
"""The highest MMAP_THRESHOLD of older versions of glibc."""


def keep_heaps() -> None:
    """Keep freed memory in the process, for the next pass; `load_backbone` calls it.

    By default glibc gives every large tensor back to the kernel when it is freed. A pass over 32 rows of 32 tokens then
    had 12,000 to 30,000 page faults, a fifth of its time. Where the environment sets one of these parameters for
    glibc, nothing is changed.
    """
    settings = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in settings or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, KEPT)
        mallopt(TOP_PAD, PAD)
        if not mallopt(MMAP_THRESHOLD, KEPT):
            mallopt(MMAP_THRESHOLD, LARGEST_BEFORE)


def share_heaps(count: int = 4) -> None:
    """Let all threads allocate from `count` heaps. Call it before there are many threads.

    By default each of the object store's many threads gets a heap, up to eight a core, which keeps what a version's
    file took: a server of a small backbone grew by 50 MB in 60 changes of its registry.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, count)


def trim_heaps() -> None:
    """Give free memory within the heaps back to the system.

    Takes 4 to 9 ms, without the interpreter's lock. Over a thousand changes of the registry a server of flan-t5-small
    grew by 11 MB with it, and by 36 without.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
