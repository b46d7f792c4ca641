"""Which tasks were called last, in `hints/recent_tasks.json`: what a server that starts should load first.

A hint, written by servers, the last writer wins. Never needed for correctness.
"""

from collections.abc import Sequence

from pydantic import Field, ValidationError

from side_registry.documents import SCHEMA_VERSION, Document
from side_registry.store import BadObject, Store

PATH = "hints/recent_tasks.json"
MOST_TASKS = 10_000
"""Names that are kept."""
MAX_BYTES = 4 << 20


class RecentTasks(Document):
    """Names of tasks, the one that was called last first."""

    schema_version: int = SCHEMA_VERSION
    tasks: tuple[str, ...] = Field(default=(), max_length=MOST_TASKS)


def read_recent(store: Store) -> tuple[str, ...]:
    """The names; none where there is no hint, or none that can be read. Raises StoreFailed."""
    try:
        data = store.read(PATH, MAX_BYTES)
        return () if data is None else RecentTasks.model_validate_json(data).tasks
    except (BadObject, ValidationError):
        return ()


def write_recent(store: Store, tasks: Sequence[str]) -> None:
    """Replace the hint; names beyond MOST_TASKS are left out. Raises StoreFailed."""
    store.overwrite(PATH, RecentTasks(tasks=tuple(tasks[:MOST_TASKS])).to_json())
