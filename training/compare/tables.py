"""The results of a comparison as Markdown, CSV and JSON: a row for each method, over its seeds."""

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from side_registry.specs.task import TaskSpec
from training.compare.documents import SUCCESS
from training.compare.serving_cost import MANY
from training.methods.methods import METHODS

MEGABYTE = 1e6
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a method's row."""

    name: str
    heading: str
    of: Callable[[Mapping[str, Any]], float | None]
    """The figure of one run's document; None where it has none."""
    digits: int = 2


def _train(name: str, unit: float = 1.0) -> Callable[[Mapping[str, Any]], float]:
    return lambda document: document["train_info"][name] / unit


def _ours(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda document: document["sidecast"][name]


def _serving(name: str, unit: float) -> Callable[[Mapping[str, Any]], float | None]:
    def of(document: Mapping[str, Any]) -> float | None:
        serving = document["sidecast"]["serving"]
        return None if serving is None else serving[name] / unit

    return of


def _share(document: Mapping[str, Any]) -> float:
    """Percent of the parameters of a step that are trained."""
    info = document["train_info"]
    return 100 * info["num_trainable_params"] / max(1, info["num_total_params"])


COLUMNS = (
    Column("trained_percent", "trained %", _share, 3),
    Column("peak_mb", "peak MB", _train("accelerator_memory_max", MEGABYTE), 1),
    Column("p99_mb", "p99 MB", _train("accelerator_memory_reserved_99th", MEGABYTE), 1),
    Column("step_s", "step s", _ours("step_time"), 3),
    Column("total_s", "total s", _train("train_time"), 0),
    Column("file_mb", "file MB", _train("file_size", MEGABYTE), 2),
    Column("gflop_1", "GFLOP, 1 task", _serving("flops_1", GIGA), 2),
    Column("gflop_16", f"GFLOP, {MANY} tasks", _serving("flops_16", GIGA), 2),
    Column("ms_1", "ms, 1 task", _serving("seconds_1", 1e-3), 1),
    Column("ms_16", f"ms, {MANY} tasks", _serving("seconds_16", 1e-3), 1),
    Column("forgetting", "forgetting", _ours("forgetting"), 3),
)

NOTES = (
    "Score: of the epoch with the best validation score, on {scored} rows; +- is the deviation over seeds.",
    "Memory: {memory}. MB are 10^6 bytes; peak is the largest step's, p99 the 99th percentile of all steps.",
    "Time: a step's is the median from one step's end to the next; total is training and validation, by the clock. The "
    "backbone runs in every step; `sidecast train` keeps its activations between epochs, which is faster.",
    "File: what one task adds to the backbone's files.",
    "Cost: one input, answered for 1 and for 16 tasks; arithmetic counted by torch, and time. Methods that change the "
    "encoder's states need a pass for each task.",
    "Forgetting: by how many nats a token the backbone's own decoder continues fixed sentences worse after training.",
)
COUNTED = (
    "bytes of parameters, gradients, optimizer state and tensors saved for the backward pass, counted in each step"
)


class Table:
    """Rows of methods, from the documents of their runs."""

    def __init__(self, documents: Sequence[Mapping[str, Any]], spec: TaskSpec, command: str) -> None:
        self.documents = documents
        self.spec = spec
        self.command = command

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One for each method, in the table's order; figures are means over the runs that ended, None without any."""
        found: list[dict[str, Any]] = []
        for name in METHODS:
            runs = [one for one in self.documents if one["run_info"]["train_config"]["method"] == name]
            if runs:
                found.append(_row(name, runs))
        return found

    @property
    def headings(self) -> list[str]:
        """Of the columns that people read."""
        return ["method", self.spec.metric, *(column.heading for column in COLUMNS), "runs"]

    @property
    def cells(self) -> list[list[str]]:
        """The rows, rounded, under `headings`."""
        return [
            [row["method"], _score(row), *(_shown(row[one.name], one.digits) for one in COLUMNS), str(row["runs"])]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """A table, what its columns mean, and how to make it again."""
        lines = [f"# {self.spec.name}: methods compared", "", _line(self.headings), _line(["---"] * len(self.headings))]
        lines += [_line(cells) for cells in self.cells]
        first = self.documents[0]
        memory = COUNTED if first["sidecast"]["memory"] == "counted" else f"{first['sidecast']['memory']} of each step"
        lines += ["", *("- " + note.format(scored=first["sidecast"]["scored"], memory=memory) for note in NOTES), ""]
        lines += [f"- {row['method']}: {METHODS[row['method']].text}." for row in self.rows]
        package, system = first["meta_info"]["package_info"], first["meta_info"]["system_info"]
        versions = ", ".join(f"{name} {package[f'{name}-version']}" for name in ("torch", "transformers", "peft"))
        machine = f"{system['machine']}, {system['threads']} threads, accelerator {system['accelerator']}"
        return "\n".join([*lines, "", f"Made with {versions} on {machine}:", "", f"    {self.command}", ""])

    def csv(self) -> str:
        """A line for each method, with full figures."""
        file = io.StringIO()
        names = ["method", "metric", "score", "deviation", *(column.name for column in COLUMNS), "runs", "status"]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: {**row, "metric": self.spec.metric}[name] for name in names})
        return file.getvalue()

    def document(self) -> dict[str, Any]:
        """The rows, and the documents of all runs in PEFT's form."""
        return {
            "task": self.spec.name,
            "metric": self.spec.metric,
            "command": self.command,
            "methods": self.rows,
            "runs": list(self.documents),
        }

    def json(self) -> str:
        """`document` as text."""
        return json.dumps(self.document(), indent=2) + "\n"


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ended = [run for run in runs if run["train_info"]["status"] == SUCCESS]
    scores = [run["train_info"]["metrics"][-1]["test accuracy"] for run in ended]
    failed = [run["train_info"]["status"] for run in runs if run["train_info"]["status"] != SUCCESS]
    return {
        "method": name,
        "score": statistics.fmean(scores) if scores else None,
        "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
        "scores": scores,
        **{column.name: _mean([column.of(run) for run in ended]) for column in COLUMNS},
        "runs": len(ended),
        "status": failed[0] if failed else SUCCESS,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _score(row: Mapping[str, Any]) -> str:
    if row["score"] is None:
        return row["status"]
    spread = "" if row["deviation"] is None else f" +- {row['deviation']:.4f}"
    return f"{row['score']:.4f}{spread}" + ("" if row["status"] == SUCCESS else f" ({row['status']} in others)")


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
