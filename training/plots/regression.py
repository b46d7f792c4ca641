"""The picture of a regression's answers."""

from collections.abc import Sequence
from typing import Any

from training.plots.picture import BLUE, GREY, png


def draw_values(task: str, values: Sequence[float], targets: Sequence[float]) -> bytes:
    """A PNG with a point for each row: its answer over its target. On the line, they are equal."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        ends = [min(*values, *targets), max(*values, *targets)]
        axes.plot(ends, ends, "--", color=GREY, label="answer = target")
        axes.scatter(targets, values, s=12, color=BLUE, alpha=0.5, linewidths=0)
        axes.set(title=f"{task}: {len(values)} rows", xlabel="target", ylabel="answer", aspect="equal")
        axes.legend()

    return png(draw, 5.0, 5.0)
