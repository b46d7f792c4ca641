"""The demo's closing tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from sidecast.demo.swap import SwapLog

NAMES = {"accuracy": "accuracy", "pearson_spearman": "correlation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One task's held-out scores."""

    task: str
    metric: str
    rows: int
    version: int
    score: float
    majority: float
    zero_shot: float


def show_tasks(console: Console, results: Sequence[TaskResult]) -> None:
    table = Table(title="Held-out scores, answered by the server", title_justify="left")
    for heading in ("task", "version", "rows", "measure", "side network", "majority", "bare backbone, zero-shot"):
        table.add_column(heading, justify="left" if heading in ("task", "measure") else "right")
    for result in results:
        figures = (f"{value:.3f}" for value in (result.score, result.majority, result.zero_shot))
        table.add_row(result.task, str(result.version), str(result.rows), NAMES[result.metric], *figures)
    console.print(table)
    console.print(
        "Zero-shot asks the backbone itself a flan-style question. Many of the movie snippets stand in SST-2 too,\n"
        "which flan models were trained on; the other two texts are new to it."
    )


def show_swap(console: Console, log: SwapLog) -> None:
    table = Table(title="The swap, as clients that never paused saw it", title_justify="left")
    for heading in (
        "answers by version 1",
        "answers by version 2",
        "order seen",
        "new version after",
        "failed requests",
    ):
        table.add_column(heading, justify="right")
    lags = ", ".join(f"{verb} {seconds:.2f} s" for verb, seconds in log.lags.items())
    order = " > ".join(map(str, log.order))
    table.add_row(str(log.answers[1]), str(log.answers[2]), order, lags, str(len(log.failures)))
    console.print(table)
    for failure in log.failures[:5]:
        console.print(f"  failed: {failure}", markup=False)
