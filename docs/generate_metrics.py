"""Write the table of docs/serving/metrics.md from the code: `python docs/generate_metrics.py`; `--check` only compares.

The table has every metric of a server: its name as Prometheus sees it, its type, its labels, its help.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from serving.metrics import Metrics

PAGE = Path(__file__).resolve().parent / "serving" / "metrics.md"
BEGIN, END = "<!-- metrics: begin, by docs/generate_metrics.py -->\n", "<!-- metrics: end -->"
SUFFIXES = {"counter": "_total", "info": "_info"}
"""What Prometheus's text adds to a metric's name."""


def table() -> str:
    """Markdown: a row for each metric, in the order of the code."""
    lines = ["| metric | type | labels | what |", "|---|---|---|---|"]
    return "\n".join([*lines, *_rows(Metrics())]) + "\n"


def _rows(metrics: Metrics) -> Iterator[str]:
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            fixed = [label for found in metric.collect() for label in _fixed(found)]
            yield _row(family, ", ".join([*metric._labelnames, *fixed]))
    for family in ProcessCollector(registry=None).collect():
        yield _row(family, "")


def _fixed(family) -> list[str]:
    """The labels of an info, which prometheus-client does not count among its label names."""
    return [label for sample in family.samples for label in sample.labels] if family.type == "info" else []


def _row(family, labels: str) -> str:
    suffix = SUFFIXES.get(family.type, "")
    kind = "gauge" if family.type == "info" else family.type
    return f"| `{family.name}{suffix}` | {kind} | {labels} | {family.documentation} |"


def page(text: str) -> str:
    """The page with today's table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the page, or with --check compare it; return the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: python docs/generate_metrics.py [--check]", file=sys.stderr)
        return 2
    text = PAGE.read_text(encoding="utf-8")
    if not arguments:
        PAGE.write_text(page(text), encoding="utf-8")
    elif page(text) != text:
        print("docs/serving/metrics.md is not fresh; run `python docs/generate_metrics.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
