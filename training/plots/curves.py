"""The curves of a run: the training loss and the metric on the validation rows, over epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.plots.picture import BLUE, GREEN, GREY, png


def draw_curves(lines: Sequence[Mapping[str, Any]], task: str, metric: str) -> bytes:
    """A PNG.

    Args:
        lines: of each epoch, as the run's `metrics.jsonl` has them; one or more.
        metric: the task's.
    """

    def draw(figure: Any) -> None:
        figure.suptitle(task, fontsize=12, x=0.01, ha="left")
        left, right = figure.subplots(1, 2)
        _draw_loss(left, lines)
        _draw_metric(right, lines, metric)

    return png(draw, 9.0, 3.6)


def _draw_loss(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    axes.plot(_epochs(lines), [line["loss"] for line in lines], "o-", color=BLUE, markersize=4)
    axes.set(title="Training loss", xlabel="epoch", ylabel="mean loss of a step")
    _whole_numbers(axes)


def _draw_metric(axes: Any, lines: Sequence[Mapping[str, Any]], metric: str) -> None:
    scores = [line[metric] for line in lines]
    epochs = _epochs(lines)
    best = scores.index(max(scores))
    axes.plot(epochs, scores, "o-", color=GREEN, markersize=4)
    label = f"best: {scores[best]:.4f} (epoch {epochs[best]})"
    axes.plot(epochs[best], scores[best], "o", color=GREEN, markersize=9, fillstyle="none", label=label)
    if "baseline" in lines[-1]:
        baseline = lines[-1]["baseline"]
        axes.axhline(baseline, color=GREY, linestyle="--", label=f"baseline: {baseline:.4f}")
    axes.set(title="Validation", xlabel="epoch", ylabel=metric)
    axes.legend()
    _whole_numbers(axes)


def _epochs(lines: Sequence[Mapping[str, Any]]) -> list[int]:
    return [line["epoch"] for line in lines]


def _whole_numbers(axes: Any) -> None:
    """Epochs have no fractions."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
