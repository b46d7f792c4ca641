"""The benchmark of batch selection on a tiny backbone: that it runs, and what its ratios are called."""

import pytest

from benchmarks.engine import bench_selection
from tests.benchmarks.local import run


@pytest.mark.slow
def test_search_is_compared_with_filling_with_and_without_packing(tiny_t5, monkeypatch):
    document = run(bench_selection, tiny_t5, "float32", monkeypatch)
    assert set(document["ratios"]) == {
        "16 waiting, packed, search / fill",
        "16 waiting, packed, fill / search, CPU time",
        "16 waiting, not packed, search / fill",
        "16 waiting, not packed, fill / search, CPU time",
    }
    for figures in document["variants"].values():
        assert 0 <= figures["padding"]["median"] < 1
        assert figures["batch_rows"]["median"] >= 1
