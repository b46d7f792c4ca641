"""Notes in the registry which tasks are called, so that the next server to start loads these first.

Runs on a thread of its own, because a store may be slow. It is a hint: a store that refuses it is logged, and nothing
else happens.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from side_registry.errors import RegistryError

log = logging.getLogger(__name__)

SAVE_S = 300.0
"""Pause between two notes."""
STOP_S = 2.0
"""Longest wait of `stop` for the store to take the last note."""


class Registry(Protocol):
    """The methods of side_registry.Registry that are used here. Both raise RegistryError if the store refuses."""

    def recent_tasks(self) -> tuple[str, ...]:
        """The last note."""
        ...

    def note_recent_tasks(self, tasks: Sequence[str]) -> None:
        """Replace the note."""
        ...


class RecentUse:
    """The tasks by their last call. Reads the last note when it is made; blocks on the store then."""

    def __init__(self, registry: Registry, save_s: float = SAVE_S) -> None:
        self._registry = registry
        self._save_s = save_s
        self._used: dict[str, None] = {}
        """Tasks that were called here, the last one at the end."""
        self._is_saved = True
        self._is_refused = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recent use", daemon=True)
        try:
            self.earlier = registry.recent_tasks()
            """The note as it was found: tasks that were called on servers before, the last one first."""
        except RegistryError as error:
            log.warning("which tasks were called last cannot be read: %s", error)
            self.earlier = ()

    def note(self, task: str) -> None:
        """A task is called. For one thread: the event loop."""
        self._used.pop(task, None)
        self._used[task] = None
        self._is_saved = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks that are known to have been called, the last one first."""
        here = tuple(reversed(self._used.copy()))
        known = set(here)
        return (*here, *(task for task in self.earlier if task not in known))

    def start(self) -> None:
        """Note the tasks on a thread, until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Write the last note. Blocks on the store, for STOP_S at most."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(self._save_s):
            self._save()
        self._save()

    def _save(self) -> None:
        if self._is_saved:
            return
        self._is_saved = True
        try:
            self._registry.note_recent_tasks(self.tasks)
        except RegistryError as error:
            level = logging.DEBUG if self._is_refused else logging.WARNING
            log.log(level, "the registry does not take which tasks were called last: %s", error)
            self._is_refused = True
