"""What the benchmark of shadows makes of a server's counts, and that it runs."""

from pathlib import Path

import pytest

from benchmarks.harness.load import Arrivals
from benchmarks.harness.samples import Samples
from benchmarks.server import bench_shadow
from benchmarks.server.bench_shadow import AGAIN, ALONE, SHADOWED, figures, ratios
from tests.benchmarks.local import run


def test_figures_of_callers_and_of_shadows() -> None:
    grown = {
        "sidecast_stage_seconds_sum backbone": 0.5,
        "sidecast_stage_seconds_sum side": 0.25,
        "sidecast_stage_seconds_sum queue": 9.0,
        "sidecast_shadow_rows_total agreed task-0 2": 2.0,
        "sidecast_shadow_rows_total agreed task-1 2": 1.0,
        "sidecast_shadow_rows_total disagreed task-0 2": 1.0,
        "sidecast_shadow_rows_total failed task-0 2": 1.0,
        "sidecast_shadow_rows_total dropped task-0 2": 3.0,
        "sidecast_shadow_seconds_total task-0 2": 0.01,
        "sidecast_shadow_seconds_total task-1 2": 0.01,
    }
    seen = Arrivals(latencies_us=[1000, 2000, 3000, 4000], errors={"OVERLOADED": 1}, window_s=2.0, grown=grown)
    found = figures(seen)
    assert (found["rows_per_s"], found["p50_ms"], found["mean_ms"]) == (2.0, 2.5, 2.5)
    assert (found["compared"], found["shadow_ms"], found["device_busy"]) == (1.0, 5.0, 0.375)
    assert found["errors"] == 2.0


def test_a_shadow_stands_beside_what_chance_alone_makes() -> None:
    one = {"p99_ms": 10.0, "mean_ms": 5.0, "p50_ms": 4.0, "device_busy": 0.5}
    more = {name: 1.5 * value for name, value in one.items()}
    found = ratios(Samples([{ALONE: one, AGAIN: one, SHADOWED: more}]))
    assert found["p99, shadow on all / no shadow"].median == 1.5
    assert found["p99, no shadow, again / no shadow"].median == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_runs_and_ends_in_its_json_line(dtype: str, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = run(bench_shadow, tiny_t5, dtype, monkeypatch)
    shadowed = document["variants"][SHADOWED]
    assert shadowed["compared"]["median"] >= 0  # a busy machine leaves no time for shadows
    assert shadowed["errors"]["median"] == 0
    assert document["variants"][ALONE]["compared"]["median"] == 0
