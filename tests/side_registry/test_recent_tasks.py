"""The hint of which tasks were called last: kept, cut, and ignored where it cannot be read."""

from pathlib import Path

import pytest

from side_registry import Registry
from side_registry.recent_tasks import MOST_TASKS, PATH


def test_the_last_note_is_read(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    assert registry.recent_tasks() == ()
    registry.note_recent_tasks(["sst2", "cola"])
    registry.note_recent_tasks(["cola", "sst2"])
    assert Registry.open(tmp_path / "registry").recent_tasks() == ("cola", "sst2")
    assert registry.state().generation == 0


def test_as_many_names_as_fit_are_kept() -> None:
    registry = Registry.open("memory://", create=True)
    names = [f"task-{number}" for number in range(MOST_TASKS + 5)]
    registry.note_recent_tasks(names)
    assert registry.recent_tasks() == tuple(names[:MOST_TASKS])


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"schema_version": 1, "tasks": "sst2"}', b"\xff"])
def test_a_note_that_cannot_be_read_is_none(data: bytes) -> None:
    registry = Registry.open("memory://", create=True)
    registry.store.overwrite(PATH, data)
    assert registry.recent_tasks() == ()
