"""Calibration: the error of probabilities, and the temperature that is fitted on validation rows."""

import math

import numpy as np
import pytest

from training.metrics.calibration import calibration_error, fit_temperature


def drawn(rows: int, classes: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose logits are `sharpness` times the true ones, and targets drawn from the true ones."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, classes)) * 2
    true = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    targets = np.array([random.choice(classes, p=row) for row in true])
    shown = np.exp(logits * sharpness)
    return shown / shown.sum(-1, keepdims=True), targets


def test_the_error_is_the_gap_between_probability_and_accuracy_of_each_bin() -> None:
    assert calibration_error([0.9] * 10, [True] * 9 + [False]) == pytest.approx(0)
    assert calibration_error([0.9, 0.9, 0.55, 0.55], [True, True, False, False]) == pytest.approx((0.1 + 0.55) / 2)
    assert calibration_error([1.0], [False]) == 1
    assert calibration_error([0.90, 0.92], [True, False]) == pytest.approx(0.41)  # one bin: 13/15 to 14/15


@pytest.mark.parametrize("sharpness", [0.6, 3.0])
def test_the_fit_finds_by_how_much_logits_are_too_large(sharpness: float) -> None:
    probabilities, targets = drawn(2000, 3, sharpness)
    fitted = fit_temperature(probabilities.tolist(), targets.tolist())
    assert fitted is not None
    assert fitted.temperature == pytest.approx(sharpness, rel=0.15)
    assert fitted.rows == 2000
    assert fitted.nll < fitted.nll_before
    assert fitted.ece < fitted.ece_before


def test_the_fit_is_that_of_scipys_search() -> None:
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    probabilities, targets = drawn(500, 4, 2.0)
    logs = np.log(probabilities)

    def loss(temperature: float) -> float:
        tempered = log_softmax(logs / temperature, -1)
        return -tempered[np.arange(len(targets)), targets].sum() - tempered.mean()

    found = minimize_scalar(loss, bounds=(0.5, 10), method="bounded", options={"xatol": 1e-6})
    fitted = fit_temperature(probabilities.tolist(), targets.tolist())
    assert fitted is not None
    assert fitted.temperature == pytest.approx(found.x, rel=1e-4)
    assert fitted.nll_before == pytest.approx(-logs[np.arange(len(targets)), targets].mean())


def test_probabilities_that_are_right_already_stay_as_they_are() -> None:
    kept = [fit_temperature(p.tolist(), t.tolist()) for p, t in (drawn(400, 3, 1.0, seed) for seed in range(6))]
    assert None in kept
    assert all(fitted is None or abs(math.log(fitted.temperature)) < 0.25 for fitted in kept)


def test_rows_that_are_all_right_do_not_make_probabilities_of_0_and_1() -> None:
    fitted = fit_temperature([[0.8, 0.2], [0.3, 0.7]] * 20, [0, 1] * 20)
    assert fitted is not None
    sharpest = 1 / (1 + math.exp(-math.log(0.8 / 0.2) / fitted.temperature))
    assert 0.9 < sharpest < 0.999


@pytest.mark.parametrize(("probabilities", "targets"), [([], []), ([[0.4, 0.6]], [1])])
def test_too_few_rows_fit_nothing(probabilities: list[list[float]], targets: list[int]) -> None:
    assert fit_temperature(probabilities, targets) is None


def test_probabilities_of_0_are_no_error() -> None:
    fitted = fit_temperature([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]] * 5, [0, 1, 1, 0] * 5)
    assert fitted is not None
    assert fitted.temperature > 5
    assert math.isfinite(fitted.nll_before)
