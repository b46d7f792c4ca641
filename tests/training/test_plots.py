"""Pictures of runs and evaluations."""

from typing import Any

import numpy as np
import pytest

from tests.training import toy
from tests.training.trackers.lines import LINES
from training.data import Example
from training.metrics.calibration import BINS, calibration_error, reliability
from training.plots import draw_curves, draw_evaluation
from training.plots.classification import OTHER, confusion

PNG = b"\x89PNG\r\n\x1a\n"


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
