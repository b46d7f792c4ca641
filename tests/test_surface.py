"""What users touch is as it was written down; `python -m tests.surface --write` writes it anew."""

import difflib

import pytest

from tests.surface import FOLDER, SNAPSHOTS


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_what_users_touch_is_as_written_down(name: str) -> None:
    written, now = (FOLDER / name).read_text(encoding="utf-8"), SNAPSHOTS[name]()
    changes = difflib.unified_diff(written.splitlines(), now.splitlines(), "written down", "now", lineterm="", n=2)
    assert written == now, f"{name} (if meant: python -m tests.surface --write)\n" + "\n".join(changes)
