"""Makes the tables of figures in docs/benchmarks.md and README.md from the newest results.

python -m benchmarks.harness.table            # print them
python -m benchmarks.harness.table --write    # put them between the pages' marks
python -m benchmarks.harness.table --check    # exit with 2 if a page has another table
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.goals import GOALS, Goal, with_spreads
from benchmarks.harness.machine import ROOT, instructions
from benchmarks.harness.samples import RESULTS, BenchmarkError, plain_errors

PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- figures: begin, by make bench -->", "<!-- figures: end -->"
NOTHING = "Not measured yet: `make bench`."

Document = Mapping[str, Any]


SUMMARY: Mapping[str, tuple[str, str]] = {
    "32 rows of 16 tasks / of one task: rows/s": ("tasks", "text batch, * tasks / 1"),
    "rows of 10,000 resident tasks / of one alone": ("many", "usual, all asked / *"),
    "a publish into 1,000 tasks / into one: time": ("many", "publish to answer, * / 1"),
    "16 tasks on one input / one task: time": ("tasks", "text one input, * tasks / 1"),
    "32 known inputs for another task / new ones: rows/s": ("tasks", "text batch, kept / cold"),
    "8 classifiers on one text, over gRPC / 8 separate models: calls/s": ("guard", "* tasks, Sidecast / separate *"),
    "32 rows of 16 tasks / PEFT's 16 LoRAs: rows/s": ("peers", "engine / PEFT mixed, 32 rows"),
    "8 rows, w8a8 / CTranslate2's int8 T5: rows/s": ("peers", "engine w8a8 / CTranslate2 int8*, 8x32"),
    "texts of 8 tasks / Hugging Face's, a batch a task: tokens/s": (
        "generation",
        "*float*, wave / Hugging Face, batch a task",
    ),
    "over gRPC, 256 callers / the engine alone: rows/s": ("server", "server / engine at saturation"),
    "padding at saturation, 256 callers": ("pressure", "padding, 256 callers"),
    "a first question on an image / a second, linear head: time": ("images", "linear new / known image"),
    "memory of a training step, T5-base: LST / full fine-tuning": ("training_memory", "t5-base, LST / full"),
}
"""The rows of the README's table: report and ratio of a goal."""


def newest(folder: Path = RESULTS) -> list[Document]:
    """Return the newest results of `bench_all` of each machine and instruction set; CPUs first.

    A script that is not in them has the newest results that it saved by itself there. `file` is the results' file.
    """
    last: dict[Machine, Document] = {}
    alone: dict[Machine, dict[str, Document]] = {}
    for path in sorted(folder.glob("*.json")):  # their names begin with the date
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("name") == "all":
            last[machine_of(document)] = {**document, "file": path.name}
        elif "ratios" in document and "machine" in document:
            alone.setdefault(machine_of(document), {})[document["name"]] = document
    filled = [{**last[name], "reports": {**alone.get(name, {}), **last[name]["reports"]}} for name in last]
    return sorted(filled, key=lambda document: (document["machine"]["gpu"] is not None, machine_of(document)))


Machine = tuple[str, str]
"""Name of the GPU, or else of the CPU, and the instruction set."""


def machine_of(document: Document) -> Machine:
    """Return whose results they are."""
    machine = document["machine"]
    return machine["gpu"] or machine["cpu"], instructions(machine)


def render(documents: Sequence[Document]) -> str:
    """Return Markdown: a line for each machine, a table of all goals that were measured, and a list of the others."""
    if not documents:
        return NOTHING
    headings = [heading for name in _headings(documents) for heading in (name, "possible")]
    lines = [*map(_where, documents), "", _line("", "goal", *headings)]
    lines.append(_line("---", "---", *["---"] * len(headings)))
    for heading, goals in GOALS.items():
        rows = [row for goal in goals if (row := _row(goal, documents))]
        if rows:
            lines += [_line(f"**{heading}**", "", *[""] * len(headings)), *rows]
    missing = [goal for goals in GOALS.values() for goal in goals if goal.rule and not _row(goal, documents)]
    if missing:
        lines += ["", "Not measured: " + "; ".join(f"{goal.text} ({goal.report})" for goal in missing) + "."]
    return "\n".join(lines)


def summary(documents: Sequence[Document]) -> str:
    """Return the README's table: some of the goals, a column for each instruction set, and how many are reached."""
    if not documents:
        return NOTHING
    headings = _headings(documents)
    lines = [_line("", "goal", *headings), _line("---", "---", *["---"] * len(headings))]
    for text, (report, ratio) in SUMMARY.items():
        [goal] = [goal for goals in GOALS.values() for goal in goals if (goal.report, goal.ratio) == (report, ratio)]
        cells = [_middle(goal, document) for document in documents]
        if any(cells):
            lines.append(_line(text, goal.rule, *cells))
    reached = [_reached(document) for document in documents]
    return "\n".join([*lines, _line("goals that are reached, of those measured", "", *reached)])


def _reached(document: Document) -> str:
    judged = [goal.reached(spread["median"]) for _, goal, spread in with_spreads(document) if spread and goal.rule]
    return f"{sum(map(bool, judged))} of {len(judged)}"


def _where(document: Document) -> str:
    machine = document["machine"]
    name, _ = machine_of(document)
    cores = f"{machine['cores']} cores, {machine['threads']} threads, " if machine["gpu"] is None else ""
    where = f"{name}, {_instructions(machine)}{cores}{machine['dtype']}, torch {machine['torch']}"
    file = f"../benchmarks/results/{document['file']}"
    return f"{where} ([{document['date']}]({file}))."


def _instructions(machine: Mapping[str, Any]) -> str:
    """Return the processor's instruction sets; empty for a GPU, and for results without them."""
    names = machine.get("instruction_sets")
    return f"{' '.join(names)}, " if names and machine["gpu"] is None else ""


def _headings(documents: Sequence[Document]) -> list[str]:
    """Name each document's column by instruction set and dtype; by machine too where two have the same ones."""
    names = [f"{machine_of(document)[1]}, {document['machine']['dtype']}" for document in documents]
    return [
        name if names.count(name) == 1 else f"{machine_of(document)[0]}, {name}"
        for name, document in zip(names, documents, strict=True)
    ]


def _row(goal: Goal, documents: Sequence[Document]) -> str:
    """Return the row of a goal; empty if no machine measured it."""
    cells = []
    for document in documents:
        spread, possible = goal.find(document), goal.possible(document)
        quartiles = f" ({number(spread['q1'])}-{number(spread['q3'])})" if spread else ""
        cells += [_middle(goal, document) + quartiles, "" if possible is None else number(possible)]
    return _line(goal.text, goal.rule, *cells) if any(map(goal.find, documents)) else ""


def _middle(goal: Goal, document: Document) -> str:
    """Return the median, in bold if the goal was reached, with the goal if it is another one there."""
    spread, here = goal.find(document), goal.on(document)
    if spread is None:
        return ""
    middle = number(spread["median"])
    middle = f"**{middle}**" if here.reached(spread["median"]) else middle
    return middle if here.rule == goal.rule else f"{middle}, goal {here.rule}"


def number(value: float) -> str:
    """Return the number with three significant digits or so."""
    if value < 0.1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def replaced(text: str, table: str, page: Path = PAGE) -> str:
    """Return `text`, of `page`, with `table` between its marks.

    Raises:
        BenchmarkError: the marks are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise BenchmarkError(f"{page.name} needs {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


@click.command()
@click.option("--write", is_flag=True, help="Put them into docs/benchmarks.md and README.md.")
@click.option("--check", is_flag=True, help="Exit with 2 unless these have them.")
def main(write: bool, check: bool) -> None:
    """Print, write or check the tables of figures in docs/benchmarks.md and README.md."""
    with plain_errors():
        documents = newest()
        for page, table in ((PAGE, render(documents)), (README, summary(documents))):
            text = page.read_text(encoding="utf-8")
            wanted = replaced(text, table, page)
            if check and wanted != text:
                raise BenchmarkError(
                    f"{page.name} has other figures than benchmarks/results: python -m benchmarks.harness.table --write"
                )
            if write:
                page.write_text(wanted, encoding="utf-8")
            if not (write or check):
                click.echo(table)


if __name__ == "__main__":
    main()
