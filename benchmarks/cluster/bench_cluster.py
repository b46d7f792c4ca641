"""What does Ray Serve cost compared with a single process, what do more replicas gain, and how long do changes take?

    python -m benchmarks.cluster.bench_cluster

A process of `sidecast serve` and the application on a Ray cluster of this machine are measured in turns, with the same
tasks and one torch thread for each server. Callers in a process of their own wait for each answer. First, one replica
and one process: rows a second at saturation by the rows of a call, the latency of a single caller, and calls that do
nothing (ServerLive), which measure the transport: HAProxy and Ray's replica against gRPC's server. Then two replicas
against two processes under load at the same time: the most that the machine allows. Then starts, and publishes to four
replicas.

If servers, HAProxy and callers need more cores than there are, the ratios are those of a full machine: see `cores`.
"""

import asyncio
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import grpc.aio

from benchmarks.harness.cli import backbone_options, load_from
from benchmarks.harness.cold_start import measure_start
from benchmarks.harness.load import measure_load
from benchmarks.harness.machine import look
from benchmarks.harness.models import HEADS, Loaded, make_run, make_spec, publish_tasks
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
    steps,
    take_turns,
)
from benchmarks.harness.served import Served, serve
from benchmarks.server.bench_server import server_figures
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from serving.client import Client, SidecastError
from side_registry import Registry
from sidecast.loadtest.loops import PAUSE_S, closed_loop
from tests.conformance.cluster import Cluster

ONE, TWO, FOUR = "1 replica", "2 replicas", "4 replicas"
PROCESS, PROCESSES = "1 process", "2 processes"
STARTED_S = 120.0
CALLERS_OF_NOTHING = (1, 32)
ACKNOWLEDGED_S = 30.0

COLUMNS = (
    Column(figure="rows_per_s", heading="rows/s"),
    Column(figure="calls_per_s", heading="calls/s", digits=0),
    Column(figure="p50_ms", heading="p50 ms", digits=2),
    Column(figure="p99_ms", heading="p99 ms"),
    Column(figure="batch_rows", heading="rows/batch"),
    Column(figure="device_busy", heading="device busy", digits=2),
    Column(figure="errors", heading="errors", digits=0),
    Column(figure="s", heading="s", digits=2),
    Column(figure="cpu_s", heading="s of a core", digits=2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes of the run."""

    tasks: int
    heads: str
    callers: tuple[int, ...]
    """Numbers of callers with one row in a call; the largest saturates a replica."""
    batched: tuple[int, ...]
    """Numbers of rows in a call."""
    batched_callers: int
    publishes: int
    """Publishes in a round."""
    seconds: float
    rounds: int
    seed: int

    @property
    def quick(self) -> "Settings":
        """Small sizes for a test run; its figures mean nothing."""
        return replace(
            self, tasks=2, callers=(1, 4), batched=(4,), batched_callers=2, publishes=2, seconds=0.5, rounds=1
        )

    @property
    def levels(self) -> dict[str, tuple[int, int]]:
        """(callers, rows of a call) by name."""
        single = {f"{callers} callers": (callers, 1) for callers in self.callers}
        return single | {f"{self.batched_callers}x{rows} rows": (self.batched_callers, rows) for rows in self.batched}


@dataclass(slots=True)
class Bench:
    """A registry and the cluster that serves it."""

    settings: Settings
    loaded: Loaded
    registry: Registry
    folder: Path
    cluster: Cluster
    seed: int
    published: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More settings of the servers."""

    @property
    def serving(self) -> dict[str, Any]:
        """Settings of the server."""
        return {"registry": self.folder / "registry", **self.loaded.settings(threads=1), **self.extra}

    @property
    def tasks(self) -> list[str]:
        """Names of the published tasks, sorted."""
        return sorted(self.registry.state().tasks)

    def deploy(self, replicas: int) -> Served:
        """Deploy `replicas` replicas; the metrics are those of one of them."""
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in self.serving.items()}
        started = time.perf_counter()
        self.cluster.apply(settings, replicas=replicas)
        statuses = self.until_they_serve(replicas)
        return Served(
            address=self.cluster.address,
            metrics_url=f"http://{statuses[0]['metrics']}/metrics",
            tasks=self.settings.tasks,
            start_s=time.perf_counter() - started,
            pid=statuses[0]["pid"],
        )

    def until_they_serve(self, replicas: int) -> list[dict[str, Any]]:
        """Wait until all replicas serve; return their statuses."""
        deadline = time.monotonic() + STARTED_S
        while time.monotonic() < deadline:
            app = self.cluster.application()
            states = [replica["state"] for replica in self.cluster.replicas()]
            if app.get("status") == "DEPLOY_FAILED":
                raise BenchmarkError(f"the application did not start: {app.get('message')}")
            if app.get("status") == "RUNNING" and states == ["RUNNING"] * replicas:
                with Client(self.cluster.address) as client:
                    client.ready(STARTED_S)
                return self.cluster.statuses()
            time.sleep(0.2)
        raise BenchmarkError(f"{replicas} replicas did not start within {STARTED_S:.0f} s")

    def load(self, served: Served, callers: int, rows: int, seconds: float) -> Figures:
        """Measure one server under load; return the callers' figures and the server's."""
        self.seed += 1
        seen = measure_load(served, self.tasks, concurrency=callers, seconds=seconds, seed=self.seed, rows=rows)
        return server_figures(seen)

    def load_both(self, pair: Sequence[Served], callers: int, rows: int, seconds: float) -> Figures:
        """Measure two servers at once, with half of the callers each."""
        half = max(callers // 2, 1)
        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(lambda served: self.load(served, half, rows, seconds), pair)
        summed = {name: one[name] + other[name] for name in ("rows_per_s", "errors")}
        return {name: (one[name] + other[name]) / 2 for name in one} | summed

    def variants(self, name: str, load: Callable[[int, int, float], Figures], levels: Sequence[str]) -> list[Variant]:
        """Return one variant for each level of load."""
        long, short = self.settings.seconds, min(self.settings.seconds, 1.0)
        return [
            Variant(
                name=f"{name}, {level}",
                measure=partial(load, *self.settings.levels[level], long),
                warm_up=partial(load, *self.settings.levels[level], short),
            )
            for level in levels
        ]

    def turns(self, variants: Sequence[Variant], quiet: bool) -> Samples:
        """Measure the variants in turns."""
        with steps(len(variants) * (self.settings.rounds + 1), quiet) as step:
            return take_turns(variants, self.settings.rounds, self.settings.seed, step)


def measure_nothing(address: str, callers: int, seconds: float) -> Figures:
    """Measure calls of ServerLive, from this process, by callers that share a connection."""
    return asyncio.run(_call_nothing(address, callers, seconds))


async def _call_nothing(address: str, callers: int, seconds: float) -> Figures:
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = oip_grpc.GRPCInferenceServiceStub(channel)
        await asyncio.wait_for(channel.channel_ready(), STARTED_S)
        started = time.perf_counter()

        async def call(began: float) -> bool:
            await stub.ServerLive(oip.ServerLiveRequest())
            latencies.append(time.perf_counter() - began)
            return True

        await closed_loop(call, callers, time.perf_counter, lambda: time.perf_counter() < started + seconds)
        took = time.perf_counter() - started
    return {
        "calls_per_s": len(latencies) / took,
        "p50_ms": 1e3 * quantile(latencies, 0.5),
        "p99_ms": 1e3 * quantile(latencies, 0.99),
    }


def compare_with_one_process(bench: Bench, quiet: bool) -> Samples:
    """Measure one replica and one process: rows, and calls that do nothing."""
    with serve(**bench.serving) as process:
        replica, levels = bench.deploy(1), list(bench.settings.levels)
        variants = [
            variant
            for name, served in ((PROCESS, process), (ONE, replica))
            for variant in (
                *bench.variants(name, partial(bench.load, served), levels),
                *(
                    Variant(
                        name=f"{name}, nothing, {callers} callers",
                        measure=partial(measure_nothing, served.address, callers, bench.settings.seconds),
                    )
                    for callers in CALLERS_OF_NOTHING
                ),
            )
        ]
        return bench.turns(variants, quiet)


def compare_with_two_processes(bench: Bench, quiet: bool) -> Samples:
    """Measure two replicas and two processes."""
    with serve(**bench.serving) as one, serve(**bench.serving) as other:
        replicas, levels = bench.deploy(2), list(bench.settings.levels)
        variants = bench.variants(PROCESSES, partial(bench.load_both, (one, other)), levels)
        return bench.turns([*variants, *bench.variants(TWO, partial(bench.load, replicas), levels)], quiet)


def starts(bench: Bench) -> list[dict[str, Figures]]:
    """Measure, in each round, the stages of a process's start, and the replacement of a killed replica."""
    rounds = []
    bench.deploy(1)
    for _ in range(bench.settings.rounds):
        stages = measure_start(bench.loaded.folder, str(bench.folder / "registry"))
        figures_by_name = {f"start, {stage}": figures for stage, figures in stages.items()}
        figures_by_name["start, replica, to an answer"] = {"s": _replace_replica(bench)}
        [status] = bench.until_they_serve(1)
        figures_by_name["start, replica, of it its own"] = {"s": float(status["start_s"])}
        rounds.append(figures_by_name)
    return rounds


def _replace_replica(bench: Bench) -> float:
    """Kill the only replica; return the seconds until another one answers."""
    [pid] = [replica["pid"] for replica in bench.cluster.replicas() if replica["state"] == "RUNNING"]
    os.kill(pid, signal.SIGKILL)
    killed = time.perf_counter()
    with Client(bench.cluster.address, retry=False) as client:
        while time.perf_counter() < killed + STARTED_S:
            try:
                client.predict(bench.tasks[0], ["a text"], timeout=STARTED_S)
            except SidecastError:
                time.sleep(PAUSE_S)
            else:
                return time.perf_counter() - killed
    raise BenchmarkError(f"a killed replica was not replaced within {STARTED_S:.0f} s")


def publishes(bench: Bench) -> list[dict[str, Figures]]:
    """Measure, per round, the time until all four replicas serve a commit, and how long callers get both versions."""
    bench.deploy(4)
    task = bench.tasks[0]
    rounds = []
    for _ in range(bench.settings.rounds):
        with Client(bench.cluster.address) as client, _watching(bench, task) as answers:
            seen = [_publish(bench, client, task, answers) for _ in range(bench.settings.publishes)]
        rounds.append({name: _figures([times[name] for times in seen]) for name in seen[0]})
    return rounds


def _publish(bench: Bench, client: Client, task: str, answers: list[tuple[float, int]]) -> dict[str, float]:
    bench.published += 1
    head = HEADS[bench.settings.heads][0]
    run = make_run(bench.folder / f"again-{bench.published}", bench.loaded, make_spec(0, head), head, 1000 + bench.seed)
    bench.seed += 1
    done = bench.registry.publish(run, alias="production", author="benchmark")
    committed = time.monotonic()
    waited = client.await_generation(done.generation, timeout=ACKNOWLEDGED_S)
    acknowledged = time.monotonic() - committed
    if not waited.served or len(waited.servers) < 4:
        raise BenchmarkError(f"not all of 4 replicas served generation {done.generation}: {waited}")
    time.sleep(0.3)
    since = [answer for answer in list(answers) if answer[0] > committed]
    new = [moment for moment, version in since if version == done.version]
    old = [moment for moment, version in since if version < done.version]
    both = max(old, default=committed) - min(new, default=committed)
    return {"publish, all of 4 replicas": acknowledged, "publish, callers get both": max(both, 0.0)}


def _figures(seconds: list[float]) -> Figures:
    return {
        "s": quantile(seconds, 0.5),
        "p50_ms": 1e3 * quantile(seconds, 0.5),
        "p99_ms": 1e3 * quantile(seconds, 0.99),
        "most_ms": 1e3 * max(seconds),
    }


@contextmanager
def _watching(bench: Bench, task: str, callers: int = 4) -> Iterator[list[tuple[float, int]]]:
    """Run callers without a pause; yields (start of a call, version that answered), which grows."""
    answers: list[tuple[float, int]] = []
    over = threading.Event()

    def call(number: int) -> None:
        with Client(bench.cluster.address) as client:
            while not over.is_set():
                began = time.monotonic()
                answers.append((began, client.predict(task, [f"{number} {began}"]).version))

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def measure(settings: Settings, loaded: Loaded, quiet: bool = False) -> Samples:
    """Start the cluster and measure everything."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecast-bench-")))
        registry = publish_tasks(folder, loaded, settings.tasks, HEADS[settings.heads], settings.seed)
        cluster = stack.enter_context(Cluster(cpus=8))
        bench = Bench(settings, loaded, registry, folder, cluster, settings.seed)
        parts = [compare_with_one_process(bench, quiet).rounds, compare_with_two_processes(bench, quiet).rounds]
        parts += [starts(bench), publishes(bench)]
    return Samples(
        [{name: figures for part in turn for name, figures in part.items()} for turn in zip(*parts, strict=True)]
    )


def ratios(settings: Settings, samples: Samples) -> dict[str, Spread]:
    """Return ratios of rows a second, unless the name says otherwise."""
    spreads = {}
    for level in settings.levels:
        spreads[f"{ONE} / {PROCESS}, {level}"] = samples.ratio("rows_per_s", f"{ONE}, {level}", f"{PROCESS}, {level}")
        spreads[f"{TWO} / {PROCESSES}, {level}"] = samples.ratio(
            "rows_per_s", f"{TWO}, {level}", f"{PROCESSES}, {level}"
        )
        spreads[f"{TWO} / {ONE}, {level}"] = samples.ratio("rows_per_s", f"{TWO}, {level}", f"{ONE}, {level}")
        spreads[f"{PROCESSES} / {PROCESS}, {level}"] = samples.ratio(
            "rows_per_s", f"{PROCESSES}, {level}", f"{PROCESS}, {level}"
        )
    for callers in CALLERS_OF_NOTHING:
        level = f"nothing, {callers} callers"
        spreads[f"{ONE} / {PROCESS}, {level}: calls/s"] = samples.ratio(
            "calls_per_s", f"{ONE}, {level}", f"{PROCESS}, {level}"
        )
    few = f"{min(settings.callers)} callers"
    spreads[f"{ONE} / {PROCESS}, {few}: p50"] = samples.ratio("p50_ms", f"{ONE}, {few}", f"{PROCESS}, {few}")
    return spreads


def report(settings: Settings, loaded: Loaded, quiet: bool = False) -> Report:
    """Measure and build the report."""
    machine = look(loaded.device, loaded.dtype)
    samples = measure(settings, loaded, quiet)
    backbone = loaded.backbone
    return Report(
        name="cluster",
        title=f"{settings.tasks} tasks on {backbone.name}, Ray Serve beside single processes, one thread each",
        machine=machine,
        settings={**asdict(settings), "backbone": backbone.name, "fingerprint": backbone.fingerprint},
        samples=samples,
        ratios=ratios(settings, samples),
    )


@click.command()
@click.option("--tasks", type=click.IntRange(1), default=8, show_default=True)
@click.option("--heads", type=click.Choice(list(HEADS)), default="mixed", show_default=True)
@click.option("--callers", type=click.IntRange(1), multiple=True, default=(1, 4, 16, 64), show_default=True)
@click.option("--batched", type=click.IntRange(1), multiple=True, default=(16, 32), show_default=True)
@click.option("--batched-callers", type=click.IntRange(1), default=8, show_default=True)
@click.option("--publishes", type=click.IntRange(1), default=10, show_default=True, help="Of a round.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Of a measurement.")
@click.option("--quick", is_flag=True, help="See in a minute or two whether it works; the figures mean nothing.")
@backbone_options
@options
def main(quick: bool, save: bool, as_json: bool, **arguments: Any) -> None:
    """Compare throughput, latency, starts and publishes on Ray Serve with single processes."""
    settings = Settings(**{setting.name: arguments[setting.name] for setting in fields(Settings)})
    with plain_errors():
        outcome = report(settings.quick if quick else settings, load_from(arguments), quiet=as_json)
        if save:
            click.echo(f"saved {outcome.save().name}", err=True)
        outcome.show(COLUMNS, as_json)


if __name__ == "__main__":
    main()
