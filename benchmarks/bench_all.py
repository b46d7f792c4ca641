"""Runs all scripts one after the other, each in a process of its own, and writes one file of results.

    python -m benchmarks.bench_all --save      # what `make bench` does
    python -m benchmarks.bench_all --save --only tasks --only peers

`--save` writes benchmarks/results/<date>-<machine>.json. With `--only` the other scripts' results of the same day and
machine stay in it. If a script fails, its error is printed, the others still run, and the exit code is 1.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.cli import backbone_options, load_from
from benchmarks.harness.goals import with_spreads
from benchmarks.harness.machine import ROOT, look
from benchmarks.harness.samples import RESULTS, BenchmarkError, plain_errors, write_document

SCRIPTS: Mapping[str, str] = {
    "tasks": "engine",
    "peers": "engine",
    "guard": "server",
    "generation": "engine",
    "startup": "server",
    "neighbours": "server",
    "many": "engine",
    "doors": "server",
    "http": "server",
    "secured": "server",
    "images": "server",
    "vision_loaded": "server",
    "training_memory": "training",
    "pressure": "server",
    "shadow": "server",
    "server": "server",
}
"""Scripts that measure the engine, the server or training, and the folder of each; shortest first. doors: calls over
gRPC; http: over HTTP; secured: with TLS and tokens."""
LIMIT_S = 3600.0
"""Longest run of one script."""


def run(script: str, words: Sequence[str]) -> dict[str, Any]:
    """Run a script; return the document of its last line.

    Raises:
        BenchmarkError: it failed; its error is on standard error.
    """
    module = "benchmarks.engine.floors" if script == "floors" else f"benchmarks.{SCRIPTS[script]}.bench_{script}"
    command = [sys.executable, "-m", module, "--json", *words]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{script} did not end within {LIMIT_S:.0f} s") from None
    if done.returncode:
        raise BenchmarkError(f"{script} failed; read its error above")
    return json.loads(done.stdout.splitlines()[-1])


def run_all(scripts: Sequence[str], common: Sequence[str], quick: bool, full: bool) -> tuple[dict[str, Any], list[str]]:
    """Run the floors and all scripts; return their reports by name, and the names of those that failed."""
    reports: dict[str, Any] = {}
    failed = []
    for script in ("floors", *scripts):
        words = [*common, *(["--quick"] if quick and script != "floors" else [])]
        words += ["--full"] if full and script == "many" else []
        started = time.perf_counter()
        try:
            reports[script] = run(script, words)
        except BenchmarkError as error:
            failed.append(script)
            click.echo(str(error), err=True)
        click.echo(f"{script}: {time.perf_counter() - started:.0f} s", err=True)
    return reports, failed


def document_of(reports: dict[str, Any], machine: dict[str, Any], date: str, before: dict[str, Any]) -> dict[str, Any]:
    """Return the results file: the new reports replace those of the same scripts in `before`."""
    kept = {**before.get("reports", {}), **{name: report for name, report in reports.items() if name != "floors"}}
    floors = reports.get("floors", before.get("floors", {}))
    return {"name": "all", "date": date, "machine": machine, "floors": floors, "reports": kept}


def print_goals(document: dict[str, Any]) -> None:
    """Print a line for each goal that was measured."""
    for heading, goal, spread in with_spreads(document):
        if spread is not None:
            reached = {True: "reached", False: "NOT REACHED", None: ""}[goal.reached(spread["median"])]
            value = f"{spread['median']:.3f} ({spread['q1']:.3f}-{spread['q3']:.3f})"
            click.echo(f"{heading}: {goal.text}: {value} {goal.rule} {reached}".rstrip())


@click.command()
@click.option("--only", type=click.Choice(tuple(SCRIPTS)), multiple=True, help="Some of the scripts.  [default: all]")
@backbone_options
@click.option("--quick", is_flag=True, help="See in minutes whether all work; the figures mean nothing.")
@click.option("--full", is_flag=True, help="Also start a server of 10,000 tasks: many minutes more.")
@click.option("--save", is_flag=True, help="Also write benchmarks/results/<date>-<machine>.json.")
def main(only: tuple[str, ...], quick: bool, full: bool, save: bool, **arguments: Any) -> None:
    """Run all benchmarks and collect their reports."""
    with plain_errors():
        loaded = load_from({**arguments, "compiles": False})
        machine = look(loaded.device, loaded.dtype)
        date = time.strftime("%Y-%m-%d", time.gmtime())
        path = RESULTS / f"{date}-{machine.slug}.json"
        del loaded
        reports, failed = run_all(only or tuple(SCRIPTS), words_of(arguments), quick, full)
        document = document_of(reports, machine.to_dict(), date, _read(path) if save else {})
        if save:
            write_document(document, path)
            click.echo(f"saved {path.name}", err=True)
    print_goals(document)
    click.echo(json.dumps(document))
    click.get_current_context().exit(1 if failed else 0)


def words_of(arguments: Mapping[str, Any]) -> list[str]:
    """Return `backbone_options` as words of a command line."""
    words = ["--compile" if arguments["compiles"] else "--no-compile"]
    for name in ("backbone", "device", "dtype", "quantize", "threads"):
        words += [f"--{name}", str(arguments[name])] if arguments[name] is not None else []
    return words


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


if __name__ == "__main__":
    main()
