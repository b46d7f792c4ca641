"""`sidecast doctor --speed`."""

import pytest

from serving.engine import device, pick_precision
from sidecast.cli import speed
from tests.sidecast.cli.house import House
from tests.sidecast.cli_kit import done, sidecast


def test_doctor_measures_every_precision_of_this_machine(house: House) -> None:
    ran = done("doctor", "--backbone", house / "t5", "--speed", "--device", "cpu", "--json")
    [found] = [each for each in ran.document["checks"] if each["check"] == "speed"]
    assert found["state"] == "ok"
    assert found["detail"].startswith("8 rows of 32 tokens: float32 ")
    assert ", w8a8 " in found["detail"]
    assert "; serve takes float32" in found["detail"]


def test_speed_without_a_backbone_is_refused() -> None:
    ran = sidecast("doctor", "--speed")
    assert ran.code == 2
    assert "give --backbone" in ran.err


@pytest.mark.parametrize(
    ("bfloat16", "times", "advice"),
    [
        (False, {"float32": 4.0, "w8a8": 2.0}, "--quantize w8a8 would be 2.00 times as fast as float32"),
        (True, {"float32": 4.0, "bfloat16": 2.0, "w8a8": 1.0}, "serve takes bfloat16, 2.00 times as fast as float32;"),
        (True, {"float32": 2.0, "bfloat16": 4.0, "w8a8": 4.0}, "--dtype float32 would be faster here"),
    ],
)
def test_the_advice_is_what_was_measured(monkeypatch: pytest.MonkeyPatch, bfloat16, times, advice) -> None:
    monkeypatch.setattr(device, "has_bfloat16", lambda: bfloat16)
    assert advice in speed.advice(times, "cpu")


def test_w8a8_is_offered_only_where_it_is_faster_than_what_serve_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_bfloat16", lambda: True)
    assert "w8a8" not in speed.advice({"float32": 4.0, "bfloat16": 2.0, "w8a8": 2.0}, "cpu")


def test_a_server_takes_bfloat16_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for bfloat16, precision in ((False, "auto"), (True, "bfloat16")):
        monkeypatch.setattr(device, "has_bfloat16", lambda bfloat16=bfloat16: bfloat16)
        assert pick_precision("auto", "cpu") == precision
        assert pick_precision("float32", "cpu") == "float32"
        assert pick_precision("auto", "cpu", "w8a8") == "auto"
        assert pick_precision("auto", "meta") == "auto"
