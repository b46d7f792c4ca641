"""How many replicas, at what latency and cost, would a fleet need? And how fast does a publish reach all of them?

    python -m benchmarks.simulate
    python -m benchmarks.simulate --check measured.json

Service times are measured ones, of `bench_server` by default; the scaling policy is the server's own. A day of each
fleet runs as a fluid, a stretch of it request by request, and the store's requests are counted. What is assumed is said
in docs/scaling.md. With --check nothing is predicted but what a file has measured, and both stand beside each other.
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

from benchmarks.harness import WIDTH, BenchmarkError, plain_errors, write_document
from benchmarks.simulation import fleet, pool, registry, routing, service, traces
from benchmarks.simulation.replica import ServerConfig
from serving.cluster.autoscaling import LoadPolicy

Row = dict[str, Any]
SHARES = 32
"""At most so many replicas are simulated request by request; a larger pool is thinned to them, its rate too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of every fleet."""

    service: service.Service
    server: ServerConfig
    fleets: tuple[int, ...]
    traces: tuple[str, ...]
    signals: tuple[str, ...]
    peak: float
    """Rows a second at the most, as a share of what the whole fleet can do."""
    hours: float
    cold_start_s: float
    tasks: int
    events: int
    """Requests that are simulated one by one, for each line."""
    seed: int

    def rng(self) -> np.random.Generator:
        """A generator of random numbers with the run's seed."""
        return np.random.default_rng(self.seed)


def days(asked: Question) -> list[Row]:
    """Every fleet on every trace, by each signal, and with no scaling at all."""
    rows = []
    for most in asked.fleets:
        for kind in asked.traces:
            peak = asked.peak * most * asked.service.capacity(asked.server.batch_rows)
            config = fleet.FleetConfig(
                service=asked.service, server=asked.server, most=most, cold_start_s=asked.cold_start_s
            )
            rate = traces.rates(kind, 3600 * asked.hours, peak, asked.rng(), config.step_s)
            for signal in (*asked.signals, None):
                policy = LoadPolicy() if signal else None
                course = fleet.Fleet(config, policy, asked.rng(), signal or "").run(rate)
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


def stretches(asked: Question) -> list[Row]:
    """The latency of a pool at the peak, request by request, by how requests are routed."""
    rows = []
    for most in asked.fleets:
        for name in routing.ROUTERS:
            count = min(most, SHARES)
            rate = asked.peak * count * asked.service.capacity(asked.server.batch_rows)
            seconds = max(1.0, asked.events / rate)
            config = pool.PoolConfig(service=asked.service, server=asked.server, replicas=count, routing=name)
            step_s, rng = seconds / 100, asked.rng()
            come = traces.arrivals(np.full(100, rate), rng, step_s=step_s, inputs=asked.tasks)
            out = pool.simulate(config, come, seed=asked.seed)
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


def publishes(asked: Question, store: registry.StoreConfig) -> list[Row]:
    """The store under each fleet."""
    found = [(most, registry.follow(most, store, asked.rng())) for most in asked.fleets]
    return [{"fleet": most, **asdict(each)} for most, each in found]


def compare(lines: Sequence[service.Line], found: service.Service, seed: int, seconds: float = 60.0) -> list[Row]:
    """What was measured beside what is predicted for it from the lines of one replica."""
    rows = []
    for line in lines:
        config = pool.PoolConfig(service=found, replicas=line.replicas)
        out = pool.simulate(config, callers=line.callers, seconds=seconds, seed=seed)
        ours = {
            "rows_per_s": out.arrived / out.ended,
            "p50_ms": 1e3 * out.quantile(0.5, seconds / 12),
            "p99_ms": 1e3 * out.quantile(0.99, seconds / 12),
            "batch_rows": out.rows / out.batches,
        }
        row: Row = {"replicas": line.replicas, "callers": line.callers}
        for name, value in ours.items():
            row |= {f"{name}_measured": getattr(line, name), name: value}
        rows.append({**row, "rows_per_s_ratio": ours["rows_per_s"] / line.rows_per_s})
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
def main(check: Path | None, source: Path | None, **given: Any) -> None:
    """Simulate a fleet of replicas, or check the simulation against a measurement."""
    with plain_errors():
        path = check or source or service.newest()
        lines = service.read_lines(path)
        found = service.fit(lines).faster(given["speed"])
        document: dict[str, Any] = {"name": "simulate", "service": asdict(found), "settings": _settings(path, given)}
        if check:
            document["check"] = _rounded(compare(lines, found, given["seed"]))
        else:
            document |= _predictions(found, given)
        if given["save"]:
            write_document(document, given["save"])
        if not given["as_json"]:
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


def _predictions(found: service.Service, given: dict[str, Any]) -> dict[str, Any]:
    asked = Question(
        service=found,
        server=ServerConfig(),
        fleets=given["fleets"],
        traces=given["kinds"],
        signals=given["signals"],
        peak=given["peak"],
        hours=given["hours"],
        cold_start_s=given["cold_start"],
        tasks=given["tasks"],
        events=given["events"],
        seed=given["seed"],
    )
    unknown = set(asked.signals) - {"busy", "load"}
    if unknown:
        raise BenchmarkError(f"--signal is busy or load, got {', '.join(sorted(unknown))}")
    kept = replace(asked, server=ServerConfig(kept_inputs=given["kept_inputs"]))
    store = registry.StoreConfig(requests_per_s=given["store_requests"])
    tables = {"days": days(asked), "stretches": stretches(kept), "publishes": publishes(asked, store)}
    return {name: _rounded(rows) for name, rows in tables.items()}


def _settings(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    left = {name: value for name, value in given.items() if name not in ("as_json", "save")}
    return {**left, "service": path.name, "service_is": "measured" if given["speed"] == 1 else "assumed"}


if __name__ == "__main__":
    main()
