"""Measures the variants of one question in turns, and reports them: table, JSON line, result file.

Each round measures every variant once, in a new random order, so that other load of the machine affects all alike.
Figures are medians and quartiles over the rounds; a ratio is computed within each round, and then its median. Ratios
can be compared between machines, milliseconds cannot. Nothing here checks a figure.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.harness.machine import Machine
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar

RESULTS = Path(__file__).parents[1] / "results"
WIDTH = 120
"""Width of a table that is not printed to a terminal."""

Figures = Mapping[str, float]
"""One measurement of one variant: figures by name; the end of a name is the unit."""
Step = Callable[[str], None]
"""Called with the name of the variant that is measured next."""


class BenchmarkError(Exception):
    """A benchmark cannot continue; the message is one sentence."""

    reason = "BENCHMARK_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One of the things to compare."""

    name: str
    measure: Callable[[], Figures]
    warm_up: Callable[[], object] | None = None
    """Called once before the first round; None: one measurement that is not counted."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the values."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the values."""
        return quantile(self.values, 0.25), quantile(self.values, 0.75)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with each round's value."""
        low, high = self.quartiles
        median, low, high = (_rounded(value) for value in (self.median, low, high))
        return {"median": median, "q1": low, "q3": high, "rounds": [_rounded(value) for value in self.values]}


@dataclass(frozen=True, slots=True)
class Samples:
    """What was measured: for each round, every variant's figures."""

    rounds: list[dict[str, Figures]] = field(default_factory=list)

    @property
    def variants(self) -> list[str]:
        """Names, in the order of the arguments of `take_turns`, not in the order of measurement."""
        return list(self.rounds[0]) if self.rounds else []

    def figures(self, variant: str) -> list[str]:
        """Return the names of the variant's figures that all rounds have."""
        return [name for name in self.rounds[0][variant] if all(name in figures[variant] for figures in self.rounds)]

    def spread(self, variant: str, figure: str) -> Spread:
        """Return a variant's figure over all rounds."""
        return Spread(tuple(figures[variant][figure] for figures in self.rounds))

    def ratio(self, figure: str, over: str, under: str) -> Spread:
        """Return the ratio of two variants' figures, `over` / `under`, within each round."""
        return Spread(tuple(figures[over][figure] / figures[under][figure] for figures in self.rounds))


def take_turns(variants: Sequence[Variant], rounds: int, seed: int = 0, step: Step | None = None) -> Samples:
    """Warm up all variants in order; then, in each round, measure all of them once in a random order.

    Raises:
        BenchmarkError: no rounds, or two variants of one name.
    """
    names = [variant.name for variant in variants]
    if rounds < 1 or len(set(names)) < len(names):
        raise BenchmarkError(f"at least one round and different names are needed, got {rounds} and {names}")
    report_step = step or (lambda name: None)
    order = random.Random(seed)
    for variant in variants:
        report_step(variant.name)
        (variant.warm_up or variant.measure)()
    samples = Samples()
    for _ in range(rounds):
        measured = {}
        for variant in order.sample(variants, len(variants)):
            report_step(variant.name)
            measured[variant.name] = variant.measure()
        samples.rounds.append({name: measured[name] for name in names})
    return samples


def time_calls(
    call: Callable[[Any], object],
    *,
    seconds: float,
    lead_s: float = 0.0,
    prepare: Callable[[], Any] = lambda: None,
    finish: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Call repeatedly, at least once, until the calls took `seconds` together; return the seconds of each call.

    Args:
        lead_s: seconds of calls before the timed ones: they warm up threads and caches.
        prepare: makes the argument of a call; not timed.
        finish: waits for the device; timed.
    """
    if lead_s:
        time_calls(call, seconds=lead_s, prepare=prepare, finish=finish, clock=clock)
    durations: list[float] = []
    while not durations or sum(durations) < seconds:
        argument = prepare()
        started = clock()
        call(argument)
        finish()
        durations.append(clock() - started)
    return durations


def speed(durations: Sequence[float], rows_per_call: int) -> dict[str, float]:
    """Return rows a second and latency quantiles of timed calls."""
    return {
        "rows_per_s": rows_per_call * len(durations) / sum(durations),
        "p50_ms": 1e3 * quantile(durations, 0.5),
        "p99_ms": 1e3 * quantile(durations, 0.99),
    }


def pace(durations: Sequence[float], per_call: int, unit: str = "rows") -> dict[str, float]:
    """Return figures of equal calls by their median, which a single slow call does not change."""
    middle = statistics.median(durations)
    return {f"{unit}_per_s": per_call / middle, "ms": 1e3 * middle}


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of the values, by linear interpolation."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table."""

    figure: str
    heading: str
    digits: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one benchmark."""

    name: str
    """As in the module bench_<name>."""
    title: str
    machine: Machine
    settings: Mapping[str, Any]
    """JSON-ready, and without paths."""
    samples: Samples
    ratios: Mapping[str, Spread]
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        samples = self.samples
        return {
            "name": self.name,
            "date": self.date,
            "machine": self.machine.to_dict(),
            "settings": dict(self.settings),
            "variants": {
                variant: {figure: samples.spread(variant, figure).to_dict() for figure in samples.figures(variant)}
                for variant in samples.variants
            },
            "ratios": {name: spread.to_dict() for name, spread in self.ratios.items()},
        }

    @property
    def file_name(self) -> str:
        """Name of the report's file."""
        return f"{self.date}-{self.machine.slug}-{self.name}.json"

    def save(self, folder: Path = RESULTS) -> Path:
        """Write the document; one of the same day, machine and name is replaced.

        Raises:
            BenchmarkError: the folder cannot be written.
        """
        return write_document(self.document(), folder / self.file_name)

    def show(self, columns: Sequence[Column], as_json: bool = False) -> None:
        """Print the table and the ratios, unless `as_json`; then, as the last line, the document as one JSON object."""
        if not as_json:
            console = Console() if Console().is_terminal else Console(width=WIDTH)
            console.print(f"{self.title}\n{self._where()}", highlight=False, markup=False)
            console.print(self._table(columns))
            for name, spread in self.ratios.items():
                console.print(f"{name}: {_with_quartiles(spread, 3)}", highlight=False, markup=False)
        click.echo(json.dumps(self.document()))

    def _where(self) -> str:
        machine, rounds = self.machine, len(self.samples.rounds)
        where = machine.gpu or f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads"
        if machine.gpu is None and machine.instruction_sets:
            where = f"{where}, {' '.join(machine.instruction_sets)}"
        where = f"{where}, {machine.dtype}, torch {machine.torch}, load {machine.load} before"
        return f"{where}; medians (quartiles) of {rounds} rounds"

    def _table(self, columns: Sequence[Column]) -> Table:
        samples, table = self.samples, Table("", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column.heading, justify="right")
        for variant in samples.variants:
            has = samples.figures(variant)
            spreads = [samples.spread(variant, column.figure) if column.figure in has else None for column in columns]
            cells = [_with_quartiles(s, c.digits) if s else "" for s, c in zip(spreads, columns, strict=True)]
            table.add_row(Text(variant), *cells)
        return table


def write_document(document: Mapping[str, Any], path: Path) -> Path:
    """Write a results file, and its folder if that is missing.

    Raises:
        BenchmarkError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"cannot write {error.filename or path}: {error.strerror or error}") from None
    return path


def options(command: Callable[..., Any], rounds: int = 3) -> Callable[..., Any]:
    """Add the options that every benchmark has: rounds, seed, json, save."""
    for decorate in (
        click.option("--save", is_flag=True, help="Also write benchmarks/results/<date>-<machine>-<name>.json."),
        click.option("--json", "as_json", is_flag=True, help="Print the JSON line alone."),
        click.option("--seed", default=0, show_default=True, help="Of the order of variants and of the rows."),
        click.option(
            "--rounds", type=click.IntRange(1), default=rounds, show_default=True, help="Measurements of each."
        ),
    ):
        command = decorate(command)
    return command


@contextmanager
def steps(total: int, quiet: bool = False) -> Iterator[Step]:
    """Show a progress bar on standard error, over `total` measurements including warm-ups."""
    with progress_bar(quiet) as bar:
        task = bar.add_task("measuring", total=total, note="", completed=-1)

        def step(name: str) -> None:
            bar.update(task, advance=1, note=name)

        yield step
        bar.update(task, advance=1, note="")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print an error that has a `reason`, as all of this project do, in one line, and exit with 2."""
    try:
        yield
    except Exception as error:
        if isinstance(error, click.ClickException) or not isinstance(getattr(error, "reason", None), str):
            raise
        raise UserError(str(error)) from None


def _with_quartiles(spread: Spread, digits: int) -> str:
    if len(spread.values) == 1:
        return f"{spread.median:.{digits}f}"
    low, high = spread.quartiles
    return f"{spread.median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _rounded(value: float) -> float:
    """Round to six digits: more would be noise."""
    return float(f"{value:.6g}")
