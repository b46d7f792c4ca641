"""Floors: known shapes' arithmetic, and ratios that can only be on one side of 1."""

import pytest

from benchmarks.engine.floors import (
    Part,
    Rates,
    best_ratios,
    calls,
    encoder,
    first_step,
    least,
    shape_of,
    side,
    weights,
)
from benchmarks.harness.goals import GOALS
from ladder.side.known_backbones import NAMED

SMALL = NAMED["flan-t5-small"].config
RATES = Rates(flops=145e9, bytes=20e9)


def test_a_part_takes_as_long_as_the_slower_of_arithmetic_and_memory():
    rates = Rates(flops=100.0, bytes=10.0, itemsize=2)
    assert Part(200.0, 1.0).seconds(rates) == 2.0
    assert Part(1.0, 15.0).seconds(rates) == 3.0
    assert least((Part(200.0, 1.0), Part(1.0, 15.0)), rates) == 5.0


def test_the_small_encoder_multiplies_18_9_million_weights_with_each_token():
    matrices = 8 * (4 * 512 * 384 + 3 * 512 * 1024)
    assert matrices == 18_874_368
    scores = 2 * 8 * 2 * 32 * 384  # of one token with 32, and their sum: two operations each
    assert encoder(SMALL, 8, 32).flops == 8 * 32 * (2 * matrices + scores)
    assert matrices < weights(SMALL)["encoder"] < 1.01 * matrices


def test_a_rung_multiplies_about_70_thousand_weights_with_each_token():
    linear = shape_of("linear", SMALL)
    rung = (side(linear, SMALL, 1, 32, 1).flops / 32 / 2) / 8
    assert 65_000 < rung < 80_000


def test_work_grows_with_rows_and_a_networks_weights_do_not():
    text = shape_of("text", SMALL)
    one, many = side(text, SMALL, 1, 32, 1), side(text, SMALL, 32, 32, 1)
    assert many.flops == 32 * one.flops
    assert many.numbers < 32 * one.numbers
    assert side(text, SMALL, 32, 32, 16).flops == many.flops
    assert first_step(SMALL, 8, 32).flops < encoder(SMALL, 8, 32).flops


def test_the_best_ratios_are_on_their_side_of_1_and_every_goals_floor_is_known():
    best = best_ratios(SMALL, RATES)
    assert all(0.9 < best[f"{key} {head}"] <= 1 for key in ("F1", "F2", "F3") for head in ("text", "linear"))
    assert all(best[f"F4 {head}"] > 1 for head in ("text", "linear"))
    assert all(best[f"F7 {head}"] > 10 for head in ("text", "linear"))
    assert {goal.floor for goals in GOALS.values() for goal in goals if goal.floor} <= set(best)


@pytest.mark.parametrize("shape", ["8x32", "16x64"])
def test_a_call_beside_a_peer_has_a_least_time(shape):
    assert calls(SMALL, RATES)[f"{shape}, encoder"] > calls(SMALL, RATES)[f"{shape}, one side network"] > 0
