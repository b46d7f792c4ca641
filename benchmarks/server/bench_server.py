"""How fast is the server compared with the engine alone, and how long do callers wait?

    python -m benchmarks.server.bench_server

A real `sidecast serve` answers requests of one row, and some of eight, for all tasks in turn, from callers in a third
process that wait for each answer. For each concurrency, the engine alone is measured too: rows of the same kind, as
token ids, called in this process, in batches of the size that the server reached, with rows of similar lengths out of
as many as the server had waiting. Server and callers share the cores; the engine has them for itself. While one is
measured, the others are idle.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.cli import backbone_options, load_from
from benchmarks.harness.load import LEAD_S, Load, measure_load, requests
from benchmarks.harness.machine import look
from benchmarks.harness.models import HEADS, Loaded, load_residents, publish_tasks
from benchmarks.harness.samples import (
    BenchmarkError,
    Column,
    Figures,
    Report,
    Samples,
    Spread,
    Variant,
    options,
    plain_errors,
    quantile,
    speed,
    steps,
    take_turns,
    time_calls,
)
from benchmarks.harness.served import Served, serve
from serving.engine import Engine, EngineRow, Resident

TOGETHER = 8
DEVICE_STAGES = ("backbone", "side", "decode")

COLUMNS = (
    Column(figure="rows_per_s", heading="rows/s"),
    Column(figure="p50_ms", heading="p50 ms"),
    Column(figure="p99_ms", heading="p99 ms"),
    Column(figure="batch_rows", heading="rows/batch"),
    Column(figure="device_busy", heading="device busy", digits=2),
    Column(figure="errors", heading="errors", digits=0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes of the run."""

    tasks: int
    heads: str
    concurrency: tuple[int, ...]
    """Numbers of callers with one row in a request."""
    together: tuple[int, ...]
    """Numbers of callers with TOGETHER rows of one task in a request."""
    seconds: float
    rounds: int
    seed: int

    @property
    def quick(self) -> "Settings":
        """Small sizes for a test run; its figures mean nothing."""
        return replace(self, tasks=2, concurrency=(1, 4), together=(2,), seconds=0.5, rounds=1)

    @property
    def levels(self) -> dict[str, tuple[int, int]]:
        """(callers, rows of a request) by name."""
        single = {str(callers): (callers, 1) for callers in self.concurrency}
        return single | {f"{callers}x{TOGETHER}": (callers, TOGETHER) for callers in self.together}


class Subject:
    """The server and the engine with the same tasks, and the server's batch sizes by concurrency."""

    def __init__(self, settings: Settings, served: Served, engine: Engine, loaded: Loaded, residents: list[Resident]):
        self.settings, self.served, self.engine, self.loaded = settings, served, engine, loaded
        self.residents = {resident.task: resident for resident in residents}
        self.batch_rows: dict[str, list[float]] = {level: [] for level in settings.levels}
        self._seed = settings.seed

    def variants(self) -> list[Variant]:
        """Return what is measured; the server first, because its warm-up determines the engine's batch size."""
        short = min(self.settings.seconds, 2.0)
        measures = [
            (f"{name} {level}", partial(measure, level))
            for name, measure in (("server", self.measure_server), ("engine", self.measure_engine))
            for level in self.settings.levels
        ]
        long = self.settings.seconds
        return [Variant(name=n, measure=partial(m, long), warm_up=partial(m, short)) for n, m in measures]

    def measure_server(self, level: str, seconds: float) -> Figures:
        """Measure the server under one level of load."""
        callers, rows = self.settings.levels[level]
        seen = measure_load(
            self.served, list(self.residents), concurrency=callers, seconds=seconds, seed=self._next_seed(), rows=rows
        )
        figures = server_figures(seen)
        self.batch_rows[level].append(figures["batch_rows"])
        if seen.errors:
            click.echo(f"server {level}: failed requests: {seen.errors}", err=True)
        return figures

    def measure_engine(self, level: str, seconds: float) -> Figures:
        """Measure the engine alone on batches like the server's."""
        count = max(1, round(Spread(tuple(self.batch_rows[level])).median))
        callers, rows = self.settings.levels[level]
        batches = by_length(self._rows(), callers * rows, count)
        durations = time_calls(
            self._predict,
            seconds=seconds,
            lead_s=min(LEAD_S, seconds),  # as long as for the server
            prepare=lambda: next(batches),
        )
        return {**speed(durations, count), "batch_rows": float(count)}

    def _predict(self, rows: list[EngineRow]) -> None:
        for outcome in self.engine.predict(rows):
            if isinstance(outcome, Exception):
                raise BenchmarkError(f"the engine failed a row: {outcome}")

    def _rows(self) -> Iterator[EngineRow]:
        for task, text in requests(list(self.residents), self._next_seed()):
            resident = self.residents[task]
            spec = resident.spec
            ids = self.loaded.tokenizer.encode(spec.render({"sentence": text}), spec.max_source_tokens)
            yield EngineRow(tuple(ids), resident)

    def _next_seed(self) -> int:
        """Return a new seed for each measurement, so that no input is asked twice."""
        self._seed += 1
        return self._seed


def by_length(rows: Iterator[EngineRow], waiting: int, count: int) -> Iterator[list[EngineRow]]:
    """Yield batches of `count` rows of similar lengths, chosen as a server does from the rows that are waiting."""
    while True:
        pool = sorted((next(rows) for _ in range(max(waiting, count))), key=lambda row: len(row.ids))
        yield from (pool[at : at + count] for at in range(0, len(pool) - count + 1, count))


def server_figures(seen: Load) -> dict[str, float]:
    """Return the figures of one measurement, from its callers and from the server's metrics."""
    grown = seen.grown
    busy = sum(grown.get(f"sidecast_stage_seconds_sum {stage}", 0.0) for stage in DEVICE_STAGES)
    return {
        "rows_per_s": seen.rows_per_s,
        "p50_ms": quantile(seen.latencies_us, 0.5) / 1e3,
        "p99_ms": quantile(seen.latencies_us, 0.99) / 1e3,
        "batch_rows": grown["sidecast_batch_rows_sum"] / max(grown["sidecast_batch_rows_count"], 1.0),
        "device_busy": busy / seen.window_s,
        "errors": float(sum(seen.errors.values())),
    }


def measure(settings: Settings, loaded: Loaded, threads: int, quiet: bool = False) -> Samples:
    """Publish the tasks, start the server, and measure server and engine in turns."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        registry = publish_tasks(Path(folder), loaded, settings.tasks, HEADS[settings.heads], settings.seed)
        residents = load_residents(registry, loaded)
        with serve(registry=Path(folder) / "registry", **loaded.settings(threads)) as served:
            if served.tasks != settings.tasks:
                raise BenchmarkError(f"the server loaded {served.tasks} of {settings.tasks} tasks; read its log above")
            subject = Subject(settings, served, loaded.engine(), loaded, residents)
            variants = subject.variants()
            with steps(len(variants) * (settings.rounds + 1), quiet) as step:
                return take_turns(variants, settings.rounds, settings.seed, step)


def report(settings: Settings, loaded: Loaded, threads: int, quiet: bool = False) -> Report:
    """Measure and build the report."""
    machine = look(loaded.device, loaded.dtype)
    samples = measure(settings, loaded, threads, quiet)
    levels = settings.levels
    ratios = {f"server {n} / engine {n}": samples.ratio("rows_per_s", f"server {n}", f"engine {n}") for n in levels}
    most = max(settings.concurrency)
    ratios["server / engine at saturation"] = ratios[f"server {most} / engine {most}"]
    backbone = loaded.backbone
    return Report(
        name="server",
        title=f"Rows of {settings.tasks} tasks on {backbone.name}, by requests in flight (engine: ms per batch)",
        machine=machine,
        settings={**asdict(settings), "backbone": backbone.name, "fingerprint": backbone.fingerprint},
        samples=samples,
        ratios=ratios,
    )


@click.command()
@click.option("--tasks", type=click.IntRange(1), default=8, show_default=True)
@click.option("--heads", type=click.Choice(list(HEADS)), default="mixed", show_default=True)
@click.option("--concurrency", type=click.IntRange(1), multiple=True, default=(1, 4, 16, 64, 256), show_default=True)
@click.option(
    "--together",
    type=click.IntRange(1),
    multiple=True,
    default=(16,),
    show_default=True,
    help=f"Callers with {TOGETHER} rows in a request.",
)
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Of a measurement.")
@click.option("--quick", is_flag=True, help="See in seconds whether it works; the figures mean nothing.")
@backbone_options
@options
def main(quick: bool, save: bool, as_json: bool, **arguments: Any) -> None:
    """Measure throughput and latency of a server by requests in flight, and of the engine alone."""
    settings = Settings(**{field.name: arguments[field.name] for field in fields(Settings)})
    with plain_errors():
        loaded = load_from(arguments)
        outcome = report(settings.quick if quick else settings, loaded, arguments["threads"], quiet=as_json)
        if save:
            click.echo(f"saved {outcome.save().name}", err=True)
        outcome.show(COLUMNS, as_json)


if __name__ == "__main__":
    main()
