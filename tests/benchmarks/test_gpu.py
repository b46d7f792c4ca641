"""python -m benchmarks.gpu on a CPU: what it measures is there, and all ways to compute agree. Never its speed."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import parity
from benchmarks.gpu.run import Run
from benchmarks.harness.samples import BenchmarkError

HEAD = {"name": "gpu"}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_on_a_cpu_all_parts_run_and_all_comparisons_agree(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = CliRunner().invoke(gpu.main, ["--device", "cpu", "--quick", "--out", str(out)])
    assert done.exit_code == 0, done.output + repr(done.exception)
    document = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout.splitlines()[-1]) == document
    assert document["complete"]
    parts = document["parts"]
    assert list(parts) == list(gpu.PARTS) == list(document["seconds"])[:-1]
    compared = {f"{dtype}, {name}" for dtype in gpu.DTYPES for name in (*parity.COMPARISONS, "texts")}
    assert {name for name, figures in parts["parity"].items() if figures["same"]} == compared
    assert {name for name, figures in parts["serving"].items() if figures["calls"]} == set(gpu.DTYPES)
    speeds = parts["speed"]
    assert set(speeds) == {"recording", "recorded, tasks", "streams", "recorded, PEFT", "recorded, generation"}
    assert {"text batch, 3 tasks / 1", "text one input, kept / cold"} <= set(speeds["recorded, tasks"]["ratios"])
    assert speeds["streams"]["ratios"]
    assert speeds["recorded, generation"]["variants"]
    assert set(parts["training"]) == {
        f"t5-base, {way}" for way in ("LST", "LST, taps kept", "LoRA", "full", "LST, bfloat16")
    }
    assert parts["device"]["decoder step"]["operations"] > 0
    assert parts["device"]["swaps"]["swaps"] == 4


def test_each_measurement_is_in_the_file_before_the_next_begins(tmp_path: Path) -> None:
    run = Run(tmp_path / "gpu.json", HEAD, 60.0)
    seen = []

    def look() -> dict[str, int]:
        seen.append(json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"])
        return {"y": 2}

    with run.part("one", 1.0):
        run.measure("a", lambda: {"x": 1})
        run.measure("b", look)
    assert seen == [{"one": {"a": {"x": 1}}}]
    assert not run.document["complete"]


def test_what_fails_is_noted_and_the_next_goes_on(tmp_path: Path) -> None:
    def fail(error: Exception) -> None:
        raise error

    run = Run(tmp_path / "gpu.json", HEAD, 60.0)
    with run.part("one", 1.0):
        run.measure("broken", lambda: fail(ValueError("no such thing")))
        run.measure("large", lambda: fail(MemoryError()))
        run.measure("peer", lambda: fail(BenchmarkError("peft is not installed: install it")))
        run.measure("differs", lambda: {"same": False})
        run.measure("good", lambda: {"same": True})
    with run.part("two", 0.0):
        time.sleep(0.01)
        run.measure("late", lambda: {"x": 1})
    with run.part("three", 1.0):
        fail(OSError("no room"))
    parts = run.document["parts"]
    assert parts["one"]["broken"] == {"error": "ValueError: no such thing"}
    assert parts["one"]["large"] == {"out_of_memory": True}
    assert parts["one"]["peer"] == {"left_out": "peft is not installed: install it"}
    assert parts["one"]["good"] == {"same": True}
    assert parts["two"]["late"] == {"left_out": "no time"}
    assert run.faults() == ["one: broken", "one: differs", "three: error"]


def test_some_parts_share_the_time_equally() -> None:
    assert gpu.shares(()) == gpu.PARTS
    assert gpu.shares(("speed", "device")) == {"speed": 0.5, "device": 1.0}
    assert list(gpu.PARTS.values()) == sorted(gpu.PARTS.values())
