"""`sidecast shadow`: how the versions of an alias's route compare with its main version, as a server saw them."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from sidecast.cli import options
from sidecast.cli.output import say, show_table
from sidecast.cli.percent import percent
from sidecast.cli.registry import routes

if TYPE_CHECKING:
    from serving.client import Comparison, Comparisons, RolledBack, Route

Document = dict[str, Any]

NO_INPUTS = (
    "this server keeps no inputs: serve with keep_inputs = true (SIDECAST_KEEP_INPUTS=true) to see where they differ"
)


@click.command(short_help="Compare the versions that share or shadow an alias's traffic.")
@click.argument("task")
@click.option("--alias", default="production", show_default=True, help="The alias whose versions are compared.")
@click.option(
    "--disagreements", type=click.IntRange(1, 1000), metavar="N", help="Show the newest N inputs that differ."
)
@options.required_server
@options.as_json
def shadow(task: str, alias: str, disagreements: int | None, server: str, as_json: bool) -> None:
    """Compare the versions that share or shadow the traffic of TASK's alias, as one server saw it.

    Counted since the route's last change. After a server has ended a version's share by itself, the comparison that
    made it do so is shown until the alias gets another route. Drift is how far scores, values, texts or vectors lie
    apart: 0 the same, 1 nothing in common. Cost is the device's time for a row that a version
    answers as a shadow.
    """

    with options.connect(server) as client:
        comparisons = client.comparison(task, alias=alias, disagreements=disagreements or 0)
        route = client.task(task).routes.get(alias)
    if as_json:
        say(True, _document(comparisons), "")
    elif not comparisons.versions or route is None:
        remedy = f"sidecast promote {task} --shadow VERSION"
        click.echo(f"all traffic of {task}@{alias} is version {comparisons.version}'s: {remedy}")
    else:
        title = f"{task}@{alias}, since generation {comparisons.since}"
        _show(title, comparisons, route, disagreements or 0, comparisons.keeps_inputs)
    if comparisons.rolled_back and not as_json:
        ended = comparisons.rolled_back
        where = f" by a server (generation {ended.generation})" if ended.generation else ""
        title = f"{task}@{alias}, shares ended{where}: {ended.why}"
        _show(title, ended, ended.route, disagreements or 0, comparisons.keeps_inputs)


def _show(
    title: str, compared: "Comparisons | RolledBack", route: "Route", disagreements: int, keeps_inputs: bool
) -> None:
    show_table(
        ("version", "role", "rows", "failed", "agreed", "drift", "latency", "cost", "dropped"),
        [_row(comparison, compared.version, route) for comparison in compared.versions],
        title=title,
    )
    if route.bounds:
        click.echo(f"bounds: {routes.bounds_in_words(asdict(route.bounds))}")
    if disagreements and not keeps_inputs:
        click.echo(NO_INPUTS)
    elif disagreements:
        show_table(
            ("time", "version", "drift", "own", "other", "input"),
            [
                (_time(d.time), d.version, f"{d.drift:.3f}", d.expected, d.found, d.prompt)
                for d in compared.disagreements
            ],
            title="newest disagreements",
        )


def _row(comparison: "Comparison", own_version: int, route: "Route") -> tuple[object, ...]:
    compared = comparison.compared > 0
    return (
        comparison.version,
        _role(comparison, own_version, route),
        comparison.rows,
        _part(comparison.failed, comparison.rows),
        f"{_part(comparison.agreed, comparison.compared)} of {comparison.compared}" if compared else "",
        f"{comparison.drift:.4f}" if compared else "",
        _milliseconds(comparison.latency_seconds),
        _milliseconds(comparison.cost_seconds),
        comparison.dropped,
    )


def _role(comparison: "Comparison", own_version: int, route: "Route") -> str:
    if comparison.version == own_version:
        return "own"
    return percent(route.shares[comparison.version]) if comparison.version in route.shares else "shadow"


def _part(some: int, all_: int) -> str:
    return percent(some / all_) if all_ else "0"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds else ""


def _time(time: datetime | None) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z") if time else ""


def _document(comparisons: "Comparisons") -> Document:
    document = asdict(comparisons)
    rolled_back = document["rolled_back"]
    if rolled_back:
        rolled_back["time"] = _time(rolled_back["time"])
    for disagreement in (*document["disagreements"], *(rolled_back["disagreements"] if rolled_back else ())):
        disagreement["time"] = _time(disagreement["time"])
    return document
