"""How much longer do callers wait if another version of every task answers all of their rows in shadow?

    python -m benchmarks.server.bench_shadow

One real `sidecast serve` with its defaults; each task has two versions. First, callers that wait for each answer: the
capacity. Then requests of one row that arrive at random, at --share of the capacity, in turns with and without a shadow
on all tasks; only the registry's routes change between the turns. "No shadow" is measured twice: the ratio of these two
shows how much of the other ratio is noise.
"""

import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.load import Arrivals, measure_arrivals, measure_load
from benchmarks.harness.models import HEADS, Loaded, make_run, make_spec, publish_tasks
from benchmarks.harness.samples import BenchmarkError, Column, Figures, Samples, Spread, Variant, quantile
from benchmarks.harness.served import Served, counted, serve
from side_registry import Registry
from side_registry.route import PLAIN, Route
from side_registry.specs.task import PRODUCTION

CALLERS = 64
QUICK_S = 1.0
SWITCH_S = 30.0
"""Longest time until the server follows a route."""
OLD, NEW = 1, 2
"""Versions of each task."""
ALONE, AGAIN, SHADOWED = "no shadow", "no shadow, again", "shadow on all"
DEVICE_STAGES = ("backbone", "side", "decode")

COLUMNS = (
    Column(figure="rows_per_s", heading="rows/s"),
    Column(figure="p50_ms", heading="p50 ms"),
    Column(figure="mean_ms", heading="mean ms", digits=2),
    Column(figure="p99_ms", heading="p99 ms"),
    Column(figure="device_busy", heading="device busy", digits=3),
    Column(figure="compared", heading="compared", digits=3),
    Column(figure="shadow_ms", heading="shadow ms/row", digits=3),
    Column(figure="errors", heading="errors", digits=0),
)


class Shadows:
    """One server, and requests with and without shadows."""

    def __init__(self, served: Served, registry: Registry, how: How, share: float) -> None:
        self._served, self._registry, self._how, self._share = served, registry, how, share
        self._names = sorted(registry.state().tasks)
        self._seconds, self._seed = QUICK_S if how.quick else how.seconds, how.seed
        self._rate = 0.0

    def variants(self) -> list[Variant]:
        """Return what is measured; the warm-up of the first measures the capacity."""
        measures = ((ALONE, PLAIN), (AGAIN, PLAIN), (SHADOWED, Route(shadows=(NEW,))))
        return [
            Variant(name=name, measure=partial(self._measure, route), warm_up=partial(self._warm_up, route))
            for name, route in measures
        ]

    def _warm_up(self, route: Route) -> None:
        if not self._rate:
            callers, seconds = (4, QUICK_S) if self._how.quick else (CALLERS, max(self._seconds, 5.0))
            seen = measure_load(self._served, self._names, concurrency=callers, seconds=seconds, seed=self._next_seed())
            self._rate = self._share * seen.rows_per_s
        self._measure(route)

    def _measure(self, route: Route) -> Figures:
        self._set(route)
        seen = measure_arrivals(
            self._served, self._names, rate=self._rate, seconds=self._seconds, seed=self._next_seed()
        )
        if seen.errors:
            click.echo(f"failed requests: {seen.errors}", err=True)
        return figures(seen)

    def _set(self, route: Route) -> None:
        """Set the route of every task, and wait until the server follows."""
        for task in self._names:
            self._registry.set_route(task, PRODUCTION, route, author="benchmark")
        generation, until = self._registry.state().generation, time.monotonic() + SWITCH_S
        while counted(self._served.metrics_url)["sidecast_generation_served"] < generation:
            if time.monotonic() > until:
                raise BenchmarkError(f"the server does not serve generation {generation}; read its log above")
            time.sleep(0.05)

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed


def figures(seen: Arrivals) -> Figures:
    """Return the callers' figures; and of the shadows, the share of rows compared and the device's time for each."""
    grown, rows = seen.grown, len(seen.latencies_us)
    compared = _total(grown, "sidecast_shadow_rows_total agreed") + _total(
        grown, "sidecast_shadow_rows_total disagreed"
    )
    failed = _total(grown, "sidecast_shadow_rows_total failed")
    shadow_s = _total(grown, "sidecast_shadow_seconds_total")
    busy = sum(grown.get(f"sidecast_stage_seconds_sum {stage}", 0.0) for stage in DEVICE_STAGES)
    return {
        "rows_per_s": rows / seen.window_s,
        "p50_ms": quantile(seen.latencies_us, 0.5) / 1e3,
        "mean_ms": sum(seen.latencies_us) / rows / 1e3,
        "p99_ms": quantile(seen.latencies_us, 0.99) / 1e3,
        "device_busy": busy / seen.window_s,
        "compared": compared / rows,
        "shadow_ms": 1e3 * shadow_s / max(compared, 1.0),
        "errors": sum(seen.errors.values()) + failed,
    }


def _total(grown: Mapping[str, float], name: str) -> float:
    """Return the sum of all series that begin with this name and these labels."""
    return sum((value for series, value in grown.items() if series.startswith(f"{name} ")), 0.0)


def ratios(samples: Samples) -> Mapping[str, Spread]:
    """Return the ratios of the report."""
    spreads = {}
    for figure, name in (("p99_ms", "p99"), ("mean_ms", "mean"), ("p50_ms", "p50"), ("device_busy", "device busy")):
        spreads[f"{name}, {SHADOWED} / {ALONE}"] = samples.ratio(figure, SHADOWED, ALONE)
        spreads[f"{name}, {AGAIN} / {ALONE}"] = samples.ratio(figure, AGAIN, ALONE)
    return spreads


def publish_both(folder: Path, loaded: Loaded, tasks: int, heads: str, seed: int) -> Registry:
    """Publish tasks with two versions; the first is in production."""
    registry = publish_tasks(folder, loaded, tasks, HEADS[heads], seed)
    for number in range(tasks):
        head = HEADS[heads][number % len(HEADS[heads])]
        spec = make_spec(number, head)
        run = make_run(folder / f"{spec.name}-{NEW}", loaded, spec, head, seed + tasks + number)
        registry.publish(run, alias=None, author="benchmark")
    return registry


def ask(
    loaded: Loaded, how: How, tasks: int, heads: str, share: float, settings: Mapping[str, Any]
) -> tuple[Samples, Mapping[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        registry = publish_both(Path(folder), loaded, tasks, heads, how.seed)
        with serve(registry=Path(folder) / "registry", **loaded.settings(how.threads), **settings) as served:
            samples = how.turns(Shadows(served, registry, how, share).variants())
    return samples, ratios(samples), {"tasks": tasks, "heads": heads, "share": share, **settings}


@click.command()
@click.option("--tasks", type=click.IntRange(1), default=4, show_default=True)
@click.option("--heads", type=click.Choice(list(HEADS)), default="mixed", show_default=True)
@click.option(
    "--share", type=click.FloatRange(0.01, 1.0), default=0.5, show_default=True, help="Of the capacity, as load."
)
@click.option("--shadow-turn-s", type=click.FloatRange(0, min_open=True), help="As in a configuration file.")
@click.option("--shadow-wait-s", type=click.FloatRange(0), help="As in a configuration file.")
@measuring(rounds=7, seconds=15.0)
def main(
    tasks: int, heads: str, share: float, shadow_turn_s: float | None, shadow_wait_s: float | None, **arguments: Any
) -> None:
    """Measure latency at a steady load, with and without a shadow on all traffic."""
    both = {"shadow_turn_s": shadow_turn_s, "shadow_wait_s": shadow_wait_s}
    settings = {name: value for name, value in both.items() if value is not None}
    answer(
        lambda loaded, how: ask(loaded, how, how.size(tasks, 2), heads, share, settings),
        name="shadow",
        title=f"A shadow on all traffic, at {share:g} of the capacity",
        columns=COLUMNS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
