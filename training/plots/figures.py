"""The LST paper's figures 1, 5, 6, 7 and 8, drawn from the runs of a comparison.

1, 5 and 6 show quality over the memory of a training step: of all methods, of methods in several sizes, and of side
networks with fewer rungs beside a backbone whose lower blocks are frozen. 7 and 8 are bars: side networks by their
start, and beside networks that have no ladder.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from training.methods.method_names import FIGURES, VARIANT_NAMES
from training.plots.picture import BLUE, GREEN, GREY, ORANGE, RED, png

Row = Mapping[str, Any]

COLOURS = {"lst": BLUE, "lora": ORANGE, "adapters": GREEN, "full": RED}
"""Of families of methods; others are grey."""
TITLES = {
    "figure-1": "Quality over memory",
    "figure-5": "Quality over memory, by size",
    "figure-6": "Quality over memory, by trained layers",
    "figure-7": "The start of a side network",
    "figure-8": "A ladder, and none",
}


def draw_figures(rows: Sequence[Row], metric: str) -> dict[str, bytes]:
    """PNGs by the figures' names, of those that have two methods with a score, a variant among them where it has any.

    Args:
        rows: of a comparison's table: `method`, `score`, `deviation`, `peak_mb`.
        metric: what the score is.
    """
    drawn: dict[str, bytes] = {}
    for figure, methods in FIGURES.items():
        found = [row for name in methods for row in rows if row["method"] == name and row["score"] is not None]
        variants = [row for row in found if row["method"] in VARIANT_NAMES]
        if len(found) > 1 and (variants or not set(methods) & set(VARIANT_NAMES)):
            draw = _bars if figure in ("figure-7", "figure-8") else _curves
            drawn[figure] = png(_drawing(draw, found, TITLES[figure], metric), 6.0, 4.2)
    return drawn


def family(method: str) -> str:
    """What a variant's method is a variant of."""
    return method.split("-")[0] if method in VARIANT_NAMES else method


def _drawing(
    draw: Callable[[Any, Sequence[Row]], None], rows: Sequence[Row], title: str, metric: str
) -> Callable[[Any], None]:
    def on(figure: Any) -> None:
        axes = figure.subplots()
        axes.set(title=title, ylabel=metric)
        draw(axes, rows)

    return on


def _curves(axes: Any, rows: Sequence[Row]) -> None:
    """A line through each family's methods."""
    for name in dict.fromkeys(family(row["method"]) for row in rows):
        theirs = sorted((row for row in rows if family(row["method"]) == name), key=lambda row: row["peak_mb"])
        across, up = [row["peak_mb"] for row in theirs], [row["score"] for row in theirs]
        spread = [row["deviation"] or 0.0 for row in theirs]
        axes.errorbar(across, up, spread, fmt="o-", markersize=4, capsize=2, color=COLOURS.get(name, GREY))
        for row in theirs:
            at = (row["peak_mb"], row["score"])
            axes.annotate(row["method"], at, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xscale="log", xlabel="peak memory of a training step, MB")


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    names, scores = [row["method"] for row in rows], [row["score"] for row in rows]
    spread = [row["deviation"] or 0.0 for row in rows]
    axes.bar(names, scores, 0.6, yerr=spread, capsize=3, color=[COLOURS.get(family(name), GREY) for name in names])
    low, high = min(scores) - max(spread), max(scores) + max(spread)
    margin = (high - low) * 0.3 or 0.05
    axes.set_ylim(low - margin, high + margin)
