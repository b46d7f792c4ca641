"""Pictures of a load: all panels that there are figures for, as .png, .svg and .html."""

import sys
from pathlib import Path
from typing import Any

import pytest

from sidecast.loadtest.inputs import Inputs, Target
from sidecast.loadtest.measure import Call, Failure, Window
from sidecast.loadtest.plan import Closed, LoadError, Open, Plan
from sidecast.loadtest.plot import check_plot, draw, make_figure
from sidecast.loadtest.report import make_document
from sidecast.loadtest.runner import Ran
from sidecast.loadtest.scrape import Look

HEAD = b"\x89PNG"


def level(kind: Closed | Open, latency: float, *, failure: Failure | None = None, stages: bool = True) -> Ran:
    calls = []
    for number in range(50):
        due = number / 50
        call = Call(task="<b>", rows=1, due=due, sent=due, ended=due + latency * (1 + number / 20), failure=failure)
        call.pieces = [(due + latency * share, 1) for share in (0.3, 0.6, 0.9)]
        calls.append(call)
    ran = Ran(level=kind, window=Window(0.0, 1.0), calls=calls)
    if stages:
        names = ("queue", "tokenize", "backbone", "side", "decode")
        counts = {f"sidecast_stage_seconds_count {name}": 10.0 for name in names}
        sums = {f"sidecast_stage_seconds_sum {name}": 0.02 * place for place, name in enumerate(names)}
        batches = {"sidecast_batch_rows_count": 10.0, "sidecast_batch_rows_sum": 40.0}
        ran.before, ran.after = Look({}, 0.0), Look(counts | sums | batches, 1.0)
    return ran


def document(*levels: Ran, **changes: Any) -> dict[str, Any]:
    plan = Plan(levels=tuple(ran.level for ran in levels), **changes)
    target = Target("<b>", "text", ("sentence",), 1)
    made = make_document(plan, [target], Inputs([target], plan), levels)
    return {"server": "127.0.0.1:8001", "metrics_url": "", "began": "2026-01-01T00:00:00+00:00"} | made


LEVELS = (level(Closed(1), 0.01), level(Closed(16), 0.05), level(Open(50), 0.4))


def titles(made: dict[str, Any]) -> list[str]:
    return [axes.get_title("left") or axes.get_title() for axes in make_figure(made).axes]


def test_panels() -> None:
    assert titles(document(*LEVELS)) == ["Latency over throughput", "Latencies", "Rates", "The server's stages"]
    assert titles(document(*LEVELS, stream=True))[-1] == "Streams"
    assert titles(document(level(Closed(1), 0.01, stages=False))) == titles(document(*LEVELS))[:3]


@pytest.mark.slow
def test_files(tmp_path: Path) -> None:
    for suffix in (".png", ".html"):
        check_plot(str(tmp_path / f"plot{suffix}"))
        draw(document(*LEVELS, stream=suffix == ".html"), tmp_path / f"plot{suffix}")
    assert (tmp_path / "plot.png").read_bytes().startswith(HEAD)
    page = (tmp_path / "plot.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "16 callers" in page


def test_levels_without_answers(tmp_path: Path) -> None:
    nothing = level(Closed(2), 0.01, failure=Failure("UNAVAILABLE", "UNREACHABLE", "gone"), stages=False)
    draw(document(nothing, stream=True), tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")


def test_what_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match=r"plot\.jpg: use a name that ends in \.png, \.svg, \.html"):
        check_plot("plot.jpg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LoadError, match=r"--plot needs matplotlib; install it with pip install 'sidecast\[plot\]'"):
        check_plot("plot.png")
