"""Is it faster to send equal inputs to the same replica, which then has their activations in its cache?

    python -m benchmarks.cluster.bench_affinity

Two clusters on this machine are measured in turns: one sends a call to the replica with the fewest in flight, the other
by the hash of the input, with bounded load of a replica. Inputs are distributed by Zipf's law.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.cluster.bench_cluster import Bench
from benchmarks.cluster.bench_cluster import Settings as ClusterSettings
from benchmarks.harness.cli import backbone_options, load_from
from benchmarks.harness.load import measure_load
from benchmarks.harness.machine import look
from benchmarks.harness.models import HEADS, Loaded, publish_tasks
from benchmarks.harness.samples import (
    Column,
    Figures,
    Report,
    Variant,
    options,
    plain_errors,
    quantile,
    steps,
    take_turns,
)
from benchmarks.harness.served import Served, counted
from serving.cluster.local_cluster import AFFINITY
from sidecast.loadtest.sentences import SENTENCES
from tests.conformance.cluster import Cluster

WAYS = {"fewest in flight": {}, "affinity": AFFINITY}
COLUMNS = (
    Column(figure="rows_per_s", heading="rows/s"),
    Column(figure="p50_ms", heading="p50 ms"),
    Column(figure="p99_ms", heading="p99 ms"),
    Column(figure="recalled", heading="recalled", digits=3),
    Column(figure="fuller", heading="fuller replica", digits=2),
    Column(figure="errors", heading="errors", digits=0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes of the run."""

    replicas: int
    tasks: int
    heads: str
    callers: int
    inputs: int
    skew: float
    """Exponent of Zipf's law."""
    cache_bytes: int
    """Size of a replica's cache."""
    warm_up_s: float
    seconds: float
    rounds: int
    seed: int

    @property
    def quick(self) -> "Settings":
        """Small sizes for a test run; its figures mean nothing."""
        return replace(self, replicas=2, tasks=2, callers=4, inputs=50, warm_up_s=1.0, seconds=1.0, rounds=1)

    @property
    def of_cluster(self) -> ClusterSettings:
        """The same sizes, as `bench_cluster` takes them."""
        shared = {name: getattr(self, name) for name in ("tasks", "heads", "seconds", "rounds", "seed")}
        return ClusterSettings(callers=(self.callers,), batched=(), batched_callers=1, publishes=0, **shared)


@dataclass(slots=True)
class Way:
    """Replicas behind one way of spreading calls."""

    settings: Settings
    served: Served
    tasks: Sequence[str]
    texts: Sequence[str]
    metrics: Sequence[str]
    """URLs, one a replica."""
    seed: int

    def measure(self, seconds: float) -> Figures:
        """Return the callers' figures, and the share of inputs that the caches of all replicas had."""
        self.seed += 1
        before = self._counts()
        load = measure_load(
            self.served,
            self.tasks,
            concurrency=self.settings.callers,
            seconds=seconds,
            seed=self.seed,
            texts=self.texts,
            skew=self.settings.skew,
        )
        both = zip(self._counts(), before, strict=True)
        grown = [[now - then for now, then in zip(*counts, strict=True)] for counts in both]
        hits, misses = (sum(counts) for counts in zip(*grown, strict=True))
        return {
            "rows_per_s": load.rows_per_s,
            "p50_ms": quantile(load.latencies_us, 0.5) / 1e3,
            "p99_ms": quantile(load.latencies_us, 0.99) / 1e3,
            "recalled": hits / max(hits + misses, 1),
            "fuller": max(map(sum, grown)) / max(hits + misses, 1),
            "errors": sum(load.errors.values()),
        }

    def _counts(self) -> list[tuple[float, float]]:
        """Hits and misses of each replica's cache."""
        replicas = [counted(url) for url in self.metrics]
        return [(counts["sidecast_cache_hits_total"], counts["sidecast_cache_misses_total"]) for counts in replicas]


def measure(settings: Settings, loaded: Loaded, quiet: bool) -> Any:
    """Start one cluster per way of routing and measure them in turns."""
    texts = [f"{number}. {SENTENCES[number % len(SENTENCES)]}" for number in range(settings.inputs)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecast-bench-")))
        registry = publish_tasks(folder, loaded, settings.tasks, HEADS[settings.heads], settings.seed)
        variants = []
        for name, more in WAYS.items():
            cluster = stack.enter_context(Cluster(cpus=settings.replicas, environment=more))
            extra = {"cache_bytes": settings.cache_bytes}
            bench = Bench(settings.of_cluster, loaded, registry, folder, cluster, settings.seed, extra=extra)
            served = bench.deploy(settings.replicas)
            metrics = [f"http://{status['metrics']}/metrics" for status in cluster.statuses()]
            way = Way(settings, served, bench.tasks, texts, metrics, settings.seed)
            variants.append(
                Variant(
                    name=name,
                    measure=partial(way.measure, settings.seconds),
                    warm_up=partial(way.measure, settings.warm_up_s),
                )
            )
        with steps(len(variants) * (settings.rounds + 1), quiet) as step:
            return take_turns(variants, settings.rounds, settings.seed, step)


def report(settings: Settings, loaded: Loaded, quiet: bool = False) -> Report:
    """Measure and build the report."""
    machine = look(loaded.device, loaded.dtype)
    samples = measure(settings, loaded, quiet)
    first, second = WAYS
    names = ("rows_per_s", "p99_ms")
    ratios = {f"{name}: {second} / {first}": samples.ratio(name, second, first) for name in names}
    return Report(
        name="affinity",
        title=f"{settings.replicas} replicas on {loaded.backbone.name}, inputs by Zipf's law, one thread each",
        machine=machine,
        settings={**asdict(settings), "backbone": loaded.backbone.name, "fingerprint": loaded.backbone.fingerprint},
        samples=samples,
        ratios=ratios,
    )


@click.command()
@click.option("--replicas", type=click.IntRange(1), default=6, show_default=True)
@click.option("--tasks", type=click.IntRange(1), default=8, show_default=True)
@click.option("--heads", type=click.Choice(list(HEADS)), default="linear", show_default=True)
@click.option("--callers", type=click.IntRange(1), default=24, show_default=True)
@click.option("--inputs", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--skew", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Zipf's.")
@click.option("--cache-bytes", type=click.IntRange(1), default=150_000_000, show_default=True, help="Of a replica.")
@click.option("--warm-up-s", type=click.FloatRange(0.1), default=40.0, show_default=True, help="Fills the caches.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=15.0, show_default=True, help="Of a measurement.")
@click.option("--quick", is_flag=True, help="See in a minute or two whether it works; the figures mean nothing.")
@backbone_options
@options
def main(quick: bool, save: bool, as_json: bool, **arguments: Any) -> None:
    """Calls spread by load and by input."""
    settings = Settings(**{field.name: arguments[field.name] for field in fields(Settings)})
    with plain_errors():
        outcome = report(settings.quick if quick else settings, load_from(arguments), quiet=as_json)
        if save:
            click.echo(f"saved {outcome.save().name}", err=True)
        outcome.show(COLUMNS, as_json)


if __name__ == "__main__":
    main()
