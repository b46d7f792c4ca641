"""What commands print: a table or a sentence for people, one JSON document for machines; progress to standard error."""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

UNFOLDED = 10_000


def say(as_json: bool, document: Any, text: str) -> None:
    """Print `document` as JSON, or `text`."""
    click.echo(json.dumps(document, ensure_ascii=False) if as_json else text)


def show_table(headings: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print a table; to a pipe or a file each row is one line, for grep."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(str(cell))) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = UNFOLDED
    console.print(table)


def plain(text: str) -> str:
    """Replace the control characters in text from others (messages, labels), which could steer a terminal."""
    return "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)


def scores_text(scores: Mapping[str, float]) -> str:
    """`accuracy 0.9120, f1 0.9010`."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


class _Bars(Progress):
    """Draws nothing before the first bar, so that an earlier mistake is reported in one line alone."""

    def start(self) -> None:
        if self.task_ids:
            super().start()

    def stop(self) -> None:
        if self.task_ids:
            super().stop()

    def add_task(self, *arguments: Any, **named: Any) -> TaskID:
        task = super().add_task(*arguments, **named)
        self.start()
        return task


def progress_bar(quiet: bool = False) -> Progress:
    """Progress bars on standard error; `quiet` (for `--json`) draws none."""
    return _Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
