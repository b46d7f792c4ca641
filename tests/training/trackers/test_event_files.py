"""TensorBoard's event files, read back by TensorBoard's own reader."""

from pathlib import Path

import pytest

from tests.training.trackers.events import scalars
from tests.training.trackers.lines import LINES
from training.errors import RunError
from training.trackers import EventFiles


def test_events_are_the_numbers_of_each_epoch_once(tmp_path: Path) -> None:
    folder = tmp_path / "events" / "letters"
    first = EventFiles(folder, [])
    first.add(LINES[:1])
    first.add(LINES[:1])
    assert scalars(folder)["loss"] == {1: pytest.approx(0.7)}  # while the run goes
    first.close()
    second = EventFiles(folder, LINES[:1])  # a run that goes on
    second.add(LINES)
    second.close()
    found = scalars(folder)
    assert found.pop("calibration/temperature") == {1: 1.5}
    assert sorted(found) == ["accuracy", "baseline", "loss", "seconds"]
    assert found == {name: {line["epoch"]: pytest.approx(line[name]) for line in LINES} for name in found}


def test_events_of_another_run_are_refused(tmp_path: Path) -> None:
    events = EventFiles(tmp_path, [])
    events.add(LINES)
    events.close()
    with pytest.raises(RunError, match="has the events of another run; choose another folder"):
        EventFiles(tmp_path, [{**LINES[0], "loss": 0.6}, LINES[1]])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        EventFiles(tmp_path / "file", [])
