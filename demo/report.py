"""The demo's closing tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from demo.swap import SwapLog

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
    """Print each task's scores on held-out rows."""
    table = Table(title="Held-out scores, answered by the server", title_justify="left", box=SIMPLE)
    for heading in ("task", "version", "rows", "measure", "side network", "majority", "zero-shot"):
        table.add_column(heading, justify="left" if heading in ("task", "measure") else "right", no_wrap=True)
    for result in results:
        figures = (f"{value:.3f}" for value in (result.score, result.majority, result.zero_shot))
        table.add_row(result.task, str(result.version), str(result.rows), NAMES[result.metric], *figures)
    console.print(table)
    console.print(
        "Majority: always the commonest label, or the mean. Zero-shot: the bare backbone, asked a flan-style\n"
        "question; many of the movie snippets stand in SST-2 too, which flan models were trained on.",
        soft_wrap=True,
    )


def show_swap(console: Console, log: SwapLog) -> None:
    """Print what clients saw during the swap."""
    title = "The swap, as clients that never paused saw it"
    table = Table(title=title, title_justify="left", box=SIMPLE, show_header=False)
    for version, count in sorted(log.answers.items()):
        table.add_row(f"answers by version {version}", str(count))
    table.add_row("versions in the order seen", ", ".join(map(str, log.order)))
    for verb, seconds in log.lags.items():
        table.add_row(f"seconds from {verb} to its first answer", f"{seconds:.2f}")
    table.add_row("failed requests", str(len(log.failures)))
    console.print(table)
    for failure in log.failures[:5]:
        console.print(f"  failed: {failure}", markup=False)
