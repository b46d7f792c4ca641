"""Pictures of a classification's answers: which labels are confused, and what the answers' probabilities are worth."""

from collections.abc import Sequence
from typing import Any

from training.metrics.calibration import BINS, calibration_error, reliability
from training.metrics.classes import pairs_of
from training.plots.picture import BLUE, GREEN, GREY, RED, png

MOST_COUNTS = 15
"""Labels up to which each cell of the matrix shows its number of rows."""
MOST_NAMES = 60
"""Labels up to which the matrix names them."""
SHOWN_LABEL = 30
"""Characters of a label."""
OTHER = "(no label)"
"""Row or column of what is none of the labels."""


def draw_confusion(task: str, values: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> bytes:
    """A PNG of the confusion matrix: a row for each target, a column for each answer.

    Colours are shares of the target's rows, and cells of up to 15 labels show numbers of rows.
    """
    names, counts = confusion(values, targets, labels)
    size = min(max(4.0, 1.5 + 0.55 * len(names)), 16.0)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        shares = [[count / max(sum(row), 1) for count in row] for row in counts]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, label="share of the target's rows", shrink=0.8)
        axes.grid(visible=False)
        axes.set(title=f"{task}: {len(values)} rows", xlabel="answer", ylabel="target")
        if len(names) > MOST_NAMES:
            return
        shown = [name if len(name) <= SHOWN_LABEL else name[: SHOWN_LABEL - 1] + "…" for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), shown)
        if len(names) > MOST_COUNTS:
            return
        for row, (numbers, parts) in enumerate(zip(counts, shares, strict=True)):
            for column, (number, part) in enumerate(zip(numbers, parts, strict=True)):
                axes.text(column, row, str(number), ha="center", va="center", color="white" if part > 0.5 else "black")

    return png(draw, size + 1.0, size)


def confusion(
    values: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]
) -> tuple[list[str], list[list[int]]]:
    """Names of the matrix's rows and columns, and the number of rows of each target (first) and answer.

    What is none of the labels has the last row and column, which are there only if they are needed.
    """
    pairs = pairs_of(values, targets)
    names = list(labels)
    if any(value not in labels or target not in labels for value, target in pairs):
        names.append(OTHER)
    index = {label: number for number, label in enumerate(labels)}
    counts = [[0] * len(names) for _ in names]
    for (value, target), count in pairs.items():
        counts[index.get(target, len(labels))][index.get(value, len(labels))] += count
    return names, counts


def draw_calibration(task: str, confidences: Sequence[float], right: Sequence[bool]) -> bytes:
    """A PNG of the reliability diagram: over the probability of answers, the share of them that is right.

    Its bins are those of `ece`. Below the diagonal, answers are less often right than their probabilities say.

    Args:
        confidences: (N,) the probability of each answer.
        right: (N,) whether it is the target.
    """
    bins = reliability(confidences, right)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.bar([(one.number + 0.5) / BINS for one in bins], [one.right for one in bins], 0.9 / BINS, color=BLUE)
        axes.plot([0, 1], [0, 1], "--", color=GREY, label="as probable as right")
        axes.plot([one.confidence for one in bins], [one.right for one in bins], "o", color=RED, label="mean of a bin")
        error = calibration_error(confidences, right)
        axes.set(title=f"{task}: ece {error:.4f}", xlabel="probability of the answer", ylabel="share that is right")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(loc="upper left")

    return png(draw, 5.0, 4.5)


def draw_scores(task: str, confidences: Sequence[float], right: Sequence[bool]) -> bytes:
    """A PNG of how many answers have which probability, the right and the wrong ones on top of each other.

    Args:
        confidences, right: as `draw_calibration` takes them.
    """
    hits = [score for score, is_right in zip(confidences, right, strict=True) if is_right]
    misses = [score for score, is_right in zip(confidences, right, strict=True) if not is_right]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        named = [f"right: {len(hits)}", f"wrong: {len(misses)}"]
        axes.hist([hits, misses], bins=20, range=(0, 1), stacked=True, color=[GREEN, RED], label=named)
        axes.set(title=f"{task}: {len(right)} rows", xlabel="probability of the answer", ylabel="rows", xlim=(0, 1))
        axes.legend(loc="upper left")

    return png(draw, 5.0, 4.0)
