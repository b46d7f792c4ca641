"""What commands print: a table or a sentence for people, one JSON document for machines; progress to standard error."""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

UNFOLDED = 10_000
GAP = 2
"""Spaces between two columns."""
INDENT = 3
"""Spaces before what is printed under a row."""


def say(as_json: bool, document: Any, text: str) -> None:
    """Print `document` as JSON, or `text`."""
    click.echo(json.dumps(document, ensure_ascii=False) if as_json else text)


def show_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, below: Sequence[str] = ()
) -> None:
    """Print a table; to a pipe or a file each row is one line, for grep.

    Args:
        below: columns that go to indented lines under their row, the last first, until the others fit the terminal.
    """
    texts = [[plain(str(cell)) for cell in row] for row in rows]
    console = Console()
    if not console.is_terminal:
        console.width = UNFOLDED
    elif below and _width(_widths(headings, texts)) > console.width:
        _show_stacked(console, headings, texts, title, below)
        return
    if title:
        console.print(Text(title, style="italic"))  # not the table's own title, which wraps at the table's width
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in texts:
        table.add_row(*map(Text, row))
    console.print(table)


def show_text(text: str) -> None:
    """Print a sentence, broken between words where it is longer than the terminal; to a pipe or a file as one line."""
    console = Console()
    if not console.is_terminal:
        console.width = UNFOLDED
    for line in Text(plain(text)).wrap(console, console.width, overflow="fold"):
        console.print(Text(line.plain.rstrip(), no_wrap=True))


def _show_stacked(
    console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None, below: Sequence[str]
) -> None:
    """Print a table that is wider than the terminal."""
    widths = _widths(headings, rows)
    moved: list[int] = []
    kept = list(range(len(headings)))
    for heading in reversed(below):
        if _width([widths[column] for column in kept]) <= console.width:
            break
        kept.remove(headings.index(heading))
        moved.insert(0, headings.index(heading))
    cut = _cut([widths[column] for column in kept], console.width)
    if title:
        console.print(Text(title, style="italic"))
    console.print(_line([headings[column] for column in kept], cut, "bold"))
    for row in rows:
        console.print(_line([row[column] for column in kept], cut))
        notes = [f"{headings[column]}: {row[column]}" for column in moved if row[column]]
        room = console.width - INDENT
        together = (" " * GAP).join(notes)
        for note in [together] if together and cell_len(together) <= room else notes:
            for line in Text(note).wrap(console, room, overflow="fold"):
                console.print(Text(" " * INDENT + line.plain.rstrip(), no_wrap=True))


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Cells of a terminal that each column needs."""
    return [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _cut(widths: Sequence[int], width: int) -> list[int]:
    """Widths that fit together: the widest columns lose what is too much."""
    cut = list(widths)
    while _width(cut) > width and max(cut) > 1:
        cut[cut.index(max(cut))] -= 1
    return cut


def _line(cells: Sequence[str], widths: Sequence[int], style: str = "") -> Text:
    """One line of a table, with an ellipsis where a cell is cut."""
    fitted = [
        set_cell_size(cell if cell_len(cell) <= width else set_cell_size(cell, width - 1).rstrip() + "…", width)
        for cell, width in zip(cells, widths, strict=True)
    ]
    return Text((" " * GAP).join(fitted).rstrip(), style=style, no_wrap=True, overflow="crop")


def plain(text: str) -> str:
    """Replace the control characters in text from others (messages, labels), which could steer a terminal."""
    return "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)


def scores_text(scores: Mapping[str, float], intervals: Mapping[str, tuple[float, float]] | None = None) -> str:
    """`accuracy 0.9120, f1 0.9010`; with intervals `accuracy 0.9120 [0.8970, 0.9280]`."""
    texts = {name: f"{name} {value:.4f}" for name, value in scores.items()}
    for name, (low, high) in (intervals or {}).items():
        texts[name] += f" [{low:.4f}, {high:.4f}]"
    return ", ".join(texts.values())


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
