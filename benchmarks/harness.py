"""Measures variants of one question beside each other, and reports them: table, JSON line, result file.

Variants take turns, in a new random order each round, so that whatever else the machine does falls on all of them
alike. Figures are medians and quartiles over the rounds; a ratio is taken within each round, and then its median.
Milliseconds are one machine's, ratios travel. Nothing here asserts a figure.
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

from benchmarks.machine import Machine
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar

RESULTS = Path(__file__).with_name("results")
WIDTH = 120
"""Columns of a table that goes to no terminal."""

Figures = Mapping[str, float]
"""One measurement of one variant: figures by name, in the units that the names end in."""
Step = Callable[[str], None]
"""Told which variant is measured next."""


class BenchmarkError(Exception):
    """A benchmark cannot go on; says why in one sentence."""

    reason = "BENCHMARK_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One of the things that are compared."""

    name: str
    measure: Callable[[], Figures]
    warm_up: Callable[[], object] | None = None
    """Done once before the first round; None: one measurement that is thrown away."""


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
        median, low, high = (_rounded(each) for each in (self.median, low, high))
        return {"median": median, "q1": low, "q3": high, "rounds": [_rounded(each) for each in self.values]}


@dataclass(frozen=True, slots=True)
class Samples:
    """What was measured: for each round, every variant's figures."""

    rounds: list[dict[str, Figures]] = field(default_factory=list)

    @property
    def variants(self) -> list[str]:
        """In the order they were given, which is not the one they were measured in."""
        return list(self.rounds[0]) if self.rounds else []

    def figures(self, variant: str) -> list[str]:
        """The names of its figures that every round has."""
        return [name for name in self.rounds[0][variant] if all(name in each[variant] for each in self.rounds)]

    def spread(self, variant: str, figure: str) -> Spread:
        """Return a variant's figure over all rounds."""
        return Spread(tuple(each[variant][figure] for each in self.rounds))

    def ratio(self, figure: str, over: str, under: str) -> Spread:
        """`over` divided by `under`, each round's by the same round's."""
        return Spread(tuple(each[over][figure] / each[under][figure] for each in self.rounds))


def take_turns(variants: Sequence[Variant], rounds: int, seed: int = 0, step: Step | None = None) -> Samples:
    """Warm every variant up, in the given order; then measure all of them once a round, in a random order.

    Raises:
        BenchmarkError: no rounds, or two variants of one name.
    """
    names = [variant.name for variant in variants]
    if rounds < 1 or len(set(names)) < len(names):
        raise BenchmarkError(f"at least one round and different names are needed, got {rounds} and {names}")
    tell, order = step or (lambda name: None), random.Random(seed)
    for variant in variants:
        tell(variant.name)
        (variant.warm_up or variant.measure)()
    samples = Samples()
    for _ in range(rounds):
        measured = {}
        for variant in order.sample(variants, len(variants)):
            tell(variant.name)
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
    """Call until that many seconds were spent inside the calls, once at least; each call's seconds.

    Args:
        lead_s: calls before, for as long inside the calls, that are not counted: threads and caches come back to work.
        prepare: makes a call's argument, outside the time.
        finish: waits for the device, inside the time.
    """
    if lead_s:
        time_calls(call, seconds=lead_s, prepare=prepare, finish=finish, clock=clock)
    durations: list[float] = []
    while not durations or sum(durations) < seconds:
        given = prepare()
        started = clock()
        call(given)
        finish()
        durations.append(clock() - started)
    return durations


def speed(durations: Sequence[float], rows_per_call: int) -> dict[str, float]:
    """The usual figures of timed calls."""
    return {
        "rows_per_s": rows_per_call * len(durations) / sum(durations),
        "p50_ms": 1e3 * quantile(durations, 0.5),
        "p99_ms": 1e3 * quantile(durations, 0.99),
    }


def pace(durations: Sequence[float], per_call: int, unit: str = "rows") -> dict[str, float]:
    """Figures of calls that are all alike, by their median: one call that the machine held up does not count."""
    middle = statistics.median(durations)
    return {f"{unit}_per_s": per_call / middle, "ms": 1e3 * middle}


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values lie below, between two of them by linear interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table."""

    figure: str
    heading: str
    digits: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One benchmark's outcome."""

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
            spreads = [samples.spread(variant, each.figure) if each.figure in has else None for each in columns]
            cells = [_with_quartiles(s, c.digits) if s else "" for s, c in zip(spreads, columns, strict=True)]
            table.add_row(Text(variant), *cells)
        return table


def write_document(document: Mapping[str, Any], path: Path) -> Path:
    """Write a results file, and its folder where that is missing.

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
    """The command line options that every benchmark has: rounds, seed, json, save."""
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
    """A progress bar over that many measurements, warm-ups counted, on standard error."""
    with progress_bar(quiet) as bar:
        task = bar.add_task("measuring", total=total, note="", completed=-1)

        def step(name: str) -> None:
            bar.update(task, advance=1, note=name)

        yield step
        bar.update(task, advance=1, note="")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Say an error that has a stable reason, all of ours do, in one line, and exit with 2."""
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
    """To six digits: more would be noise."""
    return float(f"{value:.6g}")
