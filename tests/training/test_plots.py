"""Pictures of runs and evaluations, and TensorBoard's event files, read back by TensorBoard's own reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import toy
from tests.training.events import scalars
from training.data import Example
from training.errors import RunError
from training.metrics.calibration import BINS, calibration_error, reliability
from training.plots import EventFiles, draw_curves, draw_evaluation
from training.plots.classification import OTHER, confusion

PNG = b"\x89PNG\r\n\x1a\n"
LINES: list[dict[str, Any]] = [
    {"epoch": 1, "loss": 0.7, "accuracy": 0.5, "baseline": 0.6, "calibration": {"temperature": 1.5}, "seconds": 2},
    {"epoch": 2, "loss": 0.4, "accuracy": 0.8, "baseline": 0.6, "thresholds": [0.5], "seconds": 1},
]


def examples(targets: list[Any]) -> list[Example]:
    return [Example(fields={"sentence": "a"}, target=target, line=1) for target in targets]


def test_curves_are_a_picture_of_every_epoch() -> None:
    both = draw_curves(LINES, "letters", "accuracy")
    assert both.startswith(PNG)
    assert draw_curves(LINES, "letters", "accuracy") == both
    assert draw_curves(LINES[:1], "letters", "accuracy") != both


def test_a_classification_has_three_pictures_and_a_regression_one() -> None:
    classes = draw_evaluation(toy.CLASSES, ["aa", "bb", "aa"], [0.9, 0.6, 0.7], examples(["aa", "aa", "aa"]))
    assert list(classes) == ["confusion.png", "calibration.png", "scores.png"]
    values = draw_evaluation(toy.VALUES, [0.1, 0.4], None, examples([0.0, 0.5]))
    assert list(values) == ["values.png"]
    assert all(picture.startswith(PNG) for picture in [*classes.values(), *values.values()])


def test_the_matrix_counts_rows_by_target_and_answer() -> None:
    answers, targets = ["aa", "bb", "bb", "aa"], ["aa", "aa", "bb", "aa"]
    assert confusion(answers, targets, ("aa", "bb")) == (["aa", "bb"], [[2, 1], [0, 1]])
    names, counts = confusion([*answers, "x"], [*targets, "bb"], ("aa", "bb"))
    assert (names, counts) == (["aa", "bb", OTHER], [[2, 1, 0], [0, 1, 1], [0, 0, 0]])


def test_the_bins_of_the_diagram_are_those_of_the_calibration_error() -> None:
    generator = np.random.default_rng(3)
    confidences = generator.uniform(0.3, 1.0, 200)
    right = generator.uniform(size=200) < confidences**2
    bins = reliability([*confidences, 1.0], [*right, True])
    assert sum(one.rows for one in bins) == 201
    assert all(one.number / BINS <= one.confidence <= (one.number + 1) / BINS for one in bins)
    error = sum(one.rows * abs(one.confidence - one.right) for one in bins) / 201
    assert error == pytest.approx(calibration_error([*confidences, 1.0], [*right, True]))


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
