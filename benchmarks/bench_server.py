"""How much of the engine's speed does the server keep, and how long do callers wait?

    python -m benchmarks.bench_server

A real `sidecast serve` answers single rows of all tasks mixed, from callers in a third process that each wait for
their answer. Beside it, at each concurrency, the engine alone: rows of the same kind, tokenized before, called in this
process in batches of the size that the server reached there. Server and callers share this machine's cores;
the engine alone has them for itself. While one is measured the others are idle.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import (
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
from benchmarks.load import LEAD_S, Load, measure_load, requests
from benchmarks.machine import look
from benchmarks.models import HEADS, Loaded, load, load_residents, publish_tasks
from benchmarks.served import Served, serve
from serving.engine import Engine, EngineRow
from serving.pool import Resident

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
    """What is measured, and how long."""

    tasks: int
    heads: str
    concurrency: tuple[int, ...]
    seconds: float
    rounds: int
    seed: int

    @property
    def quick(self) -> "Settings":
        """Enough to see that it works, for figures that mean nothing."""
        return Settings(tasks=2, heads=self.heads, concurrency=(1, 4), seconds=0.5, rounds=1, seed=self.seed)


class Subject:
    """The server and the engine, with the same tasks, and the batch sizes that each concurrency came to."""

    def __init__(self, settings: Settings, served: Served, engine: Engine, loaded: Loaded, residents: list[Resident]):
        self.settings, self.served, self.engine, self.loaded = settings, served, engine, loaded
        self.residents = {resident.task: resident for resident in residents}
        self.batch_rows: dict[int, list[float]] = {number: [] for number in settings.concurrency}
        self._seed = settings.seed

    def variants(self) -> list[Variant]:
        """The server's first: its warm-up tells the engine the size of batches."""
        short = min(self.settings.seconds, 2.0)
        measures = [
            (f"{name} {concurrency}", partial(measure, concurrency))
            for name, measure in (("server", self.measure_server), ("engine", self.measure_engine))
            for concurrency in self.settings.concurrency
        ]
        long = self.settings.seconds
        return [Variant(name=n, measure=partial(m, long), warm_up=partial(m, short)) for n, m in measures]

    def measure_server(self, concurrency: int, seconds: float) -> Figures:
        how = {"concurrency": concurrency, "seconds": seconds, "seed": self._next_seed()}
        seen = measure_load(self.served, list(self.residents), **how)
        figures = server_figures(seen)
        self.batch_rows[concurrency].append(figures["batch_rows"])
        if seen.errors:
            click.echo(f"server {concurrency}: failed requests: {seen.errors}", err=True)
        return figures

    def measure_engine(self, concurrency: int, seconds: float) -> Figures:
        count = max(1, round(Spread(tuple(self.batch_rows[concurrency])).median))
        rows = self._rows()
        durations = time_calls(
            self._predict,
            seconds=seconds,
            lead_s=min(LEAD_S, seconds),  # the server is given as much
            prepare=lambda: [next(rows) for _ in range(count)],
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
        """A new one for each measurement, so that nothing is ever asked twice."""
        self._seed += 1
        return self._seed


def server_figures(seen: Load) -> dict[str, float]:
    """One measurement of the server, from what its callers saw and from its own counts."""
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
    """Publish, serve, and let server and engine take turns."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        registry = publish_tasks(Path(folder), loaded, settings.tasks, HEADS[settings.heads], settings.seed)
        residents = load_residents(registry, loaded)
        flags = {"device": loaded.device, "dtype": loaded.dtype, "threads": threads}
        with serve(backbone=loaded.folder, registry=Path(folder) / "registry", **flags) as served:
            if served.tasks != settings.tasks:
                raise BenchmarkError(f"the server loaded {served.tasks} of {settings.tasks} tasks; read its log above")
            subject = Subject(settings, served, Engine(loaded.backbone), loaded, residents)
            variants = subject.variants()
            with steps(len(variants) * (settings.rounds + 1), quiet) as step:
                return take_turns(variants, settings.rounds, settings.seed, step)


def report(settings: Settings, loaded: Loaded, threads: int, quiet: bool = False) -> Report:
    machine = look(loaded.device, loaded.dtype)
    samples = measure(settings, loaded, threads, quiet)
    levels = settings.concurrency
    ratios = {f"server {n} / engine {n}": samples.ratio("rows_per_s", f"server {n}", f"engine {n}") for n in levels}
    ratios["server / engine at saturation"] = ratios[f"server {max(levels)} / engine {max(levels)}"]
    backbone = loaded.backbone
    return Report(
        name="server",
        title=f"Single rows of {settings.tasks} tasks on {backbone.name}, by requests in flight (engine: ms per batch)",
        machine=machine,
        settings={**asdict(settings), "backbone": backbone.name, "fingerprint": backbone.fingerprint},
        samples=samples,
        ratios=ratios,
    )


@click.command()
@click.option("--backbone", metavar="B", help="A Hugging Face folder, or a hub id.  [default: the demo's]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Torch's, in server and engine; 0: its own choice.")
@click.option("--tasks", type=click.IntRange(1), default=8, show_default=True)
@click.option("--heads", type=click.Choice(list(HEADS)), default="mixed", show_default=True)
@click.option("--concurrency", type=click.IntRange(1), multiple=True, default=(1, 4, 16, 64), show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Of a measurement.")
@click.option("--quick", is_flag=True, help="See in seconds whether it works; the figures mean nothing.")
@options
def main(
    backbone: str | None, device: str, dtype: str, threads: int, quick: bool, save: bool, as_json: bool, **given: Any
) -> None:
    """Throughput and latency of a server against requests in flight, the engine alone beside it."""
    settings = Settings(**given)
    with plain_errors():
        loaded = load(backbone, device=device, dtype=dtype, threads=threads)
        outcome = report(settings.quick if quick else settings, loaded, threads, quiet=as_json)
        if save:
            click.echo(f"saved {outcome.save().name}", err=True)
        outcome.show(COLUMNS, as_json)


if __name__ == "__main__":
    main()
