"""Makes the table of figures in docs/benchmarks.md from the newest results.

python -m benchmarks.harness.table            # print it
python -m benchmarks.harness.table --write    # put it between the page's two marks
python -m benchmarks.harness.table --check    # exit with 2 if the page has another table
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.goals import GOALS, Goal
from benchmarks.harness.machine import ROOT, slug
from benchmarks.harness.samples import RESULTS, BenchmarkError, plain_errors

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: begin, by make bench -->", "<!-- figures: end -->"
NOTHING = "Not measured yet: `make bench`."

Document = Mapping[str, Any]


def newest(folder: Path = RESULTS) -> list[Document]:
    """Return the newest results of `bench_all` of each machine; CPUs first.

    A script that is not in them has the newest results that it saved by itself on that machine.
    """
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    last: dict[str, Document] = {}
    alone: dict[str, dict[str, Document]] = {}
    for document in documents:  # their names begin with the date
        if document.get("name") == "all":
            last[machine_name(document)] = document
        elif "ratios" in document and "machine" in document:
            alone.setdefault(machine_name(document), {})[document["name"]] = document
    filled = [{**last[name], "reports": {**alone.get(name, {}), **last[name]["reports"]}} for name in last]
    return sorted(filled, key=lambda document: (document["machine"]["gpu"] is not None, machine_name(document)))


def machine_name(document: Document) -> str:
    """Return the name of the GPU, or else of the CPU."""
    return document["machine"]["gpu"] or document["machine"]["cpu"]


def render(documents: Sequence[Document]) -> str:
    """Return Markdown: a line for each machine, a table of all goals that were measured, and a list of the others."""
    if not documents:
        return NOTHING
    lines = [*map(_where, documents), "", _line("", "goal", *_headings(documents))]
    lines.append(_line("---", "---", *["---"] * len(_headings(documents))))
    for heading, goals in GOALS.items():
        rows = [row for goal in goals if (row := _row(goal, documents))]
        if rows:
            lines += [_line(f"**{heading}**", "", *[""] * len(_headings(documents))), *rows]
    missing = [goal for goals in GOALS.values() for goal in goals if goal.rule and not _row(goal, documents)]
    if missing:
        lines += ["", "Not measured: " + "; ".join(f"{goal.text} ({goal.report})" for goal in missing) + "."]
    return "\n".join(lines)


def _where(document: Document) -> str:
    machine = document["machine"]
    cores = f"{machine['cores']} cores, {machine['threads']} threads, " if machine["gpu"] is None else ""
    where = f"{machine_name(document)}, {_instructions(machine)}{cores}{machine['dtype']}, torch {machine['torch']}"
    file = f"../benchmarks/results/{document['date']}-{slug(machine_name(document))}.json"
    return f"{where} ([{document['date']}]({file}))."


def _instructions(machine: Mapping[str, Any]) -> str:
    """Return the processor's instruction sets; empty for a GPU, and for results without them."""
    names = machine.get("instruction_sets")
    return f"{' '.join(names)}, " if names and machine["gpu"] is None else ""


def _headings(documents: Sequence[Document]) -> list[str]:
    names = ["measured"] if len(documents) == 1 else [machine_name(document) for document in documents]
    return [column for name in names for column in (name, "possible")]


def _row(goal: Goal, documents: Sequence[Document]) -> str:
    """Return the row of a goal; empty if no machine measured it."""
    spreads = [goal.find(document) for document in documents]
    if not any(spreads):
        return ""
    cells = []
    for document, spread in zip(documents, spreads, strict=True):
        possible = goal.possible(document)
        cells += [_spread(goal, spread), "" if possible is None else number(possible)]
    return _line(goal.text, goal.rule, *cells)


def _spread(goal: Goal, spread: Mapping[str, Any] | None) -> str:
    """Return median and quartiles, in bold if the goal was reached."""
    if spread is None:
        return ""
    middle = number(spread["median"])
    middle = f"**{middle}**" if goal.reached(spread["median"]) else middle
    return f"{middle} ({number(spread['q1'])}-{number(spread['q3'])})"


def number(value: float) -> str:
    """Return the number with three significant digits or so."""
    if value < 0.1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def replaced(text: str, table: str) -> str:
    """Return `text` with `table` between its marks.

    Raises:
        BenchmarkError: the marks are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise BenchmarkError(f"docs/benchmarks.md needs {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


@click.command()
@click.option("--write", is_flag=True, help="Put it into docs/benchmarks.md.")
@click.option("--check", is_flag=True, help="Exit with 2 unless docs/benchmarks.md has it.")
def main(write: bool, check: bool) -> None:
    """Print, write or check the table of figures in docs/benchmarks.md."""
    with plain_errors():
        text = PAGE.read_text(encoding="utf-8")
        table = render(newest())
        wanted = replaced(text, table)
        if check and wanted != text:
            raise BenchmarkError(
                "docs/benchmarks.md has other figures than benchmarks/results: "
                "python -m benchmarks.harness.table --write"
            )
        if write:
            PAGE.write_text(wanted, encoding="utf-8")
        if not (write or check):
            click.echo(table)


if __name__ == "__main__":
    main()
