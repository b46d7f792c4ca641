"""Files that are read again when they change, such as certificates that a program renews.

A change that cannot be used keeps what was read before: the log says why, once for each change.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
"""Least time between two looks at the files, in seconds."""
SETTLED_S = 2.0
"""Files younger than this when they were read are read again: a clock's tick may hide a second change."""

Value = TypeVar("Value")


class WatchedFiles(Generic[Value]):
    """What was last read from some files. Any thread may ask for it.

    Args:
        paths: the files.
        read: reads all of them. Raises OSError or ValueError where they cannot be used.

    Raises:
        OSError, ValueError: from the first read.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], Value], look_every_s: float = LOOK_EVERY_S) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._look_every_s = look_every_s
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._read_at = time.time()
        self._looked_at = time.monotonic()
        self._fault = ""
        self._value = read()

    @property
    def current(self) -> Value:
        """What the files said when they could last be used; reads them again if they changed."""
        if time.monotonic() - self._looked_at >= self._look_every_s and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._value

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        signature = self._signature()
        if signature == self._seen and self._is_settled(signature):
            return
        self._seen = signature
        self._read_at = time.time()
        try:
            self._value = self._read()
            self._fault = ""
        except (OSError, ValueError) as error:
            fault = str(error)
            if fault != self._fault:
                log.error("%s: %s; what was read before stays in use", ", ".join(map(str, self._paths)), fault)
            self._fault = fault

    def _is_settled(self, signature: tuple[tuple[int, ...], ...]) -> bool:
        newest = max((times[0] for times in signature if times), default=0) / 1e9
        return newest + SETTLED_S < self._read_at

    def _signature(self) -> tuple[tuple[int, ...], ...]:
        """Of each file its time of change, size and inode; nothing of one that is not there."""
        return tuple(_stat(path) for path in self._paths)


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
