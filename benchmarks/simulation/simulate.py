"""How many replicas, at what latency and cost, would a fleet need? And how fast does a publish reach all of them?

    python -m benchmarks.simulation.simulate
    python -m benchmarks.simulation.simulate --check measured.json

Service times are measured, by `bench_server` by default; the scaling policy is the server's. A day of each fleet is
simulated as a fluid, a shorter time request by request, and the store's requests are counted. docs/operation/scaling.md
lists the assumptions. With --check, only the measurements of a file are predicted, and printed next to the predictions.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness.samples import WIDTH, BenchmarkError, plain_errors, write_document
from benchmarks.simulation import fleet, pool, registry, routing, service, traces
from benchmarks.simulation.replica import ServerConfig
from serving.cluster.autoscaling import LoadPolicy

Row = dict[str, Any]
SHARES = 32
"""Most replicas that are simulated request by request; a larger pool and its rate are scaled down to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Settings of the simulation, for every fleet."""

    service: service.Service
    server: ServerConfig
    fleets: tuple[int, ...]
    traces: tuple[str, ...]
    signals: tuple[str, ...]
    peak: float
    """Highest rows a second, as a share of the capacity of the whole fleet."""
    hours: float
    cold_start_s: float
    tasks: int
    events: int
    """Requests that are simulated one by one, for each row of the table."""
    seed: int

    def rng(self) -> np.random.Generator:
        """A generator of random numbers with the run's seed."""
        return np.random.default_rng(self.seed)


def days(question: Question) -> list[Row]:
    """Simulate every fleet on every trace, scaled by each signal, and not scaled."""
    rows = []
    for most in question.fleets:
        for kind in question.traces:
            peak = question.peak * most * question.service.capacity(question.server.batch_rows)
            config = fleet.FleetConfig(
                service=question.service, server=question.server, most=most, cold_start_s=question.cold_start_s
            )
            rate = traces.rates(kind, 3600 * question.hours, peak, question.rng(), config.step_s)
            for signal in (*question.signals, None):
                policy = LoadPolicy() if signal else None
                course = fleet.Fleet(config, policy, question.rng(), signal or "").run(rate)
                rows.append(_day(most, kind, signal, course, rate))
    return rows


def _day(most: int, kind: str, signal: str | None, course: fleet.Course, rate: np.ndarray) -> Row:
    return {
        "fleet": most,
        "trace": kind,
        "scaled_by": signal or "nothing",
        "peak_rows_per_s": float(rate.max()),
        "mean_rows_per_s": float(rate.mean()),
        "replicas_mean": float(course.running.mean()),
        "replicas_most": int(course.running.max()),
        "replica_hours": course.replica_hours,
        "p50_ms": 1e3 * course.quantile(0.5),
        "p99_ms": 1e3 * course.quantile(0.99),
        "turns": course.changes,
    }


def stretches(question: Question) -> list[Row]:
    """Simulate a pool at the peak request by request, with every router."""
    rows = []
    for most in question.fleets:
        for name in routing.ROUTERS:
            count = min(most, SHARES)
            rate = question.peak * count * question.service.capacity(question.server.batch_rows)
            seconds = max(1.0, question.events / rate)
            config = pool.PoolConfig(service=question.service, server=question.server, replicas=count, routing=name)
            step_s, rng = seconds / 100, question.rng()
            arrivals = traces.arrivals(np.full(100, rate), rng, step_s=step_s, inputs=question.tasks)
            out = pool.simulate(config, arrivals, seed=question.seed)
            rows.append(
                {
                    "fleet": most,
                    "simulated": count,
                    "routing": name,
                    "seconds": seconds,
                    "p50_ms": 1e3 * out.quantile(0.5, seconds / 4),
                    "p99_ms": 1e3 * out.quantile(0.99, seconds / 4),
                    "batch_rows": out.rows / max(1, out.batches),
                    "kept": out.hits / max(1, out.rows),
                }
            )
    return rows


def publishes(question: Question, store: registry.StoreConfig) -> list[Row]:
    """Simulate the store under each fleet."""
    return [{"fleet": most, **asdict(registry.follow(most, store, question.rng()))} for most in question.fleets]


def compare(
    lines: Sequence[service.Line], service_times: service.Service, seed: int, seconds: float = 60.0
) -> list[Row]:
    """Return every measurement with its prediction, made from the lines of one replica."""
    rows = []
    for line in lines:
        config = pool.PoolConfig(service=service_times, replicas=line.replicas)
        out = pool.simulate(config, callers=line.callers, seconds=seconds, seed=seed)
        predicted = {
            "rows_per_s": out.arrived / out.ended,
            "p50_ms": 1e3 * out.quantile(0.5, seconds / 12),
            "p99_ms": 1e3 * out.quantile(0.99, seconds / 12),
            "batch_rows": out.rows / out.batches,
        }
        row: Row = {"replicas": line.replicas, "callers": line.callers}
        for name, value in predicted.items():
            row |= {f"{name}_measured": getattr(line, name), name: value}
        rows.append({**row, "rows_per_s_ratio": predicted["rows_per_s"] / line.rows_per_s})
    return rows


def _show(title: str, rows: Sequence[Row]) -> None:
    console = Console() if Console().is_terminal else Console(width=WIDTH)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table, "")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _rounded(rows: Sequence[Row]) -> list[Row]:
    return [{k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
MORE = click.FloatRange(0, min_open=True)


@click.command(help=__doc__)
@click.option("--check", type=FILE, help="Predict what this result file has measured.")
@click.option(
    "--service", "source", type=FILE, help="Result file with service times.  [default: bench_server's newest]"
)
@click.option("--speed", type=MORE, default=1.0, show_default=True, help="Assumed: a device so many times as fast.")
@click.option("--fleet", "fleets", type=click.IntRange(1, 10_000), multiple=True, default=(10, 100, 1000))
@click.option("--trace", "kinds", type=click.Choice(traces.KINDS), multiple=True, default=traces.KINDS)
@click.option("--signal", "signals", multiple=True, default=("busy", "load"), help="Figures to scale by.")
@click.option("--peak", type=click.FloatRange(0, 1, min_open=True), default=0.7, show_default=True)
@click.option("--hours", type=MORE, default=24.0, show_default=True, help="Of a trace.")
@click.option("--cold-start", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds.")
@click.option("--tasks", type=click.IntRange(1), default=10_000, show_default=True, help="Inputs, by Zipf's law.")
@click.option("--kept-inputs", type=click.IntRange(0), default=400, show_default=True, help="In a replica's cache.")
@click.option("--events", type=click.IntRange(100, 5_000_000), default=20_000, show_default=True)
@click.option("--store-requests", type=MORE, default=5500.0, show_default=True, help="The store's most, a second.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON line alone.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Also write the JSON to this file.")
def main(check: Path | None, source: Path | None, **arguments: Any) -> None:
    """Simulate a fleet of replicas, or check the simulation against a measurement."""
    with plain_errors():
        path = check or source or service.newest()
        lines = service.read_lines(path)
        service_times = service.fit(lines).faster(arguments["speed"])
        document: dict[str, Any] = {
            "name": "simulate",
            "service": asdict(service_times),
            "settings": _settings(path, arguments),
        }
        if check:
            document["check"] = _rounded(compare(lines, service_times, arguments["seed"]))
        else:
            document |= _predictions(service_times, arguments)
        if arguments["save"]:
            write_document(document, arguments["save"])
        if not arguments["as_json"]:
            for title, rows in document.items():
                if isinstance(rows, list):
                    _show(TITLES[title], rows)
        click.echo(json.dumps(document))


TITLES = {
    "check": "Measured, and predicted from one replica's batch times",
    "days": "A day as a fluid",
    "stretches": "At the peak, request by request",
    "publishes": "The registry's store",
}


def _predictions(service_times: service.Service, arguments: dict[str, Any]) -> dict[str, Any]:
    question = Question(
        service=service_times,
        server=ServerConfig(),
        fleets=arguments["fleets"],
        traces=arguments["kinds"],
        signals=arguments["signals"],
        peak=arguments["peak"],
        hours=arguments["hours"],
        cold_start_s=arguments["cold_start"],
        tasks=arguments["tasks"],
        events=arguments["events"],
        seed=arguments["seed"],
    )
    unknown = set(question.signals) - {"busy", "load"}
    if unknown:
        raise BenchmarkError(f"--signal is busy or load, got {', '.join(sorted(unknown))}")
    kept = replace(question, server=ServerConfig(kept_inputs=arguments["kept_inputs"]))
    store = registry.StoreConfig(requests_per_s=arguments["store_requests"])
    tables = {"days": days(question), "stretches": stretches(kept), "publishes": publishes(question, store)}
    return {name: _rounded(rows) for name, rows in tables.items()}


def _settings(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    left = {name: value for name, value in arguments.items() if name not in ("as_json", "save")}
    return {**left, "service": path.name, "service_is": "measured" if arguments["speed"] == 1 else "assumed"}


if __name__ == "__main__":
    main()
