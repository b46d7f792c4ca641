"""Folded states, stored so that opening reads only the end of the log. Never needed for correctness.

A checkpoint is named by its generation and its digest, and is used only if the log holds its last commit: one that is
lost, damaged, stale, ahead of the log or from another log is skipped.
"""

import hashlib
import logging
import re

from pydantic import ValidationError

from side_registry.documents import Document
from side_registry.errors import RegistryError
from side_registry.log import Log
from side_registry.state import State
from side_registry.store import BadObject, Store

SCHEMA = 5
"""Of checkpoints alone. Raise it when the state gets a new field: old checkpoints lack it, the log has it."""

EVERY = 64
"""Commits between two checkpoints."""
KEPT = 3
"""Checkpoints that are not removed."""
MAX_CHECKPOINT_BYTES = 1 << 30

NAME = re.compile(r"checkpoints/(?P<generation>\d{20})-(?P<sha256>[0-9a-f]{64})\.json")

LOGGER = logging.getLogger(__name__)


class Checkpoint(Document):
    """A checkpoint's file."""

    schema_version: int = SCHEMA
    state: State


def save_checkpoint(store: Store, state: State) -> None:
    """Write a checkpoint, and remove all but the newest KEPT. A failure is logged: nothing depends on it."""
    data = Checkpoint(state=state).to_json()
    try:
        store.put_new(f"checkpoints/{state.generation:020d}-{hashlib.sha256(data).hexdigest()}.json", data)
        for path in checkpoint_paths(store)[KEPT:]:
            store.remove(path)
    except RegistryError as error:
        LOGGER.warning("checkpoint of generation %d not kept: %s", state.generation, error)


def load_checkpoint(store: Store, commits: Log) -> State:
    """State of the newest checkpoint that is sound and of this log; the empty state when there is none."""
    for path in checkpoint_paths(store):
        state = read_checkpoint(store, path)
        if state is not None and _is_of(commits, state):
            return state
    return State()


def checkpoint_paths(store: Store) -> list[str]:
    """Paths of the checkpoints, newest first."""
    return [path for path in reversed(store.list("checkpoints")) if NAME.fullmatch(path)]


def read_checkpoint(store: Store, path: str) -> State | None:
    """The state of one checkpoint; None when it is lost, damaged, or of another schema."""
    match = NAME.fullmatch(path)
    try:
        data = store.read(path, MAX_CHECKPOINT_BYTES)
        if data is None or match is None or hashlib.sha256(data).hexdigest() != match["sha256"]:
            return None
        checkpoint = Checkpoint.model_validate_json(data)
    except (BadObject, ValidationError):
        return None
    if checkpoint.schema_version != SCHEMA or checkpoint.state.generation != int(match["generation"]):
        return None
    return checkpoint.state


def _is_of(commits: Log, state: State) -> bool:
    try:
        last = commits.read(state.generation)
    except RegistryError:
        return False
    return last is not None and last.id == state.head
