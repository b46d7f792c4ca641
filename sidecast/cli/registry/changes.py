"""Commands that change a registry: promote, rollback, retire; `publish.py` has publish. Each is one commit."""

from collections.abc import Callable
from typing import Any

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import say
from sidecast.cli.percent import Rate, Share
from sidecast.cli.registry import routes
from sidecast.cli.registry.views import Document, View, is_route_changed, open_view

PRODUCTION = "production"
WAIT_S = 45.0
"""Longer than the lease of a killed server (side_registry/servers.py), so that a killed server does not fail it."""
LONGEST_WAIT_S = 300.0
ATTEMPTS = 3
"""Tries to change a route that others change too."""

message = click.option("--message", "-m", default="", help="Why; kept in the history.")
wait = click.option(
    "--wait",
    type=click.FloatRange(0, LONGEST_WAIT_S),
    is_flag=False,
    flag_value=WAIT_S,
    metavar="[SECONDS]",
    help=f"Wait until every server that follows the registry serves the change; {WAIT_S:g} seconds by default.",
)


def moved(task: str, text: str, alias: str, before: int | None) -> str:
    """That an alias moved, from where, and how to undo it."""
    if before is None:
        return text
    return f"{text}, was version {before}: {options.command_here('rollback', task, alias=alias)} undoes it"


def _bounds(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the bounds that a version with a share must keep."""
    for name, kind, text in reversed(
        (
            ("error-rate", Rate(), "How much larger its share of failed rows may be than the main version's."),
            ("latency", click.FloatRange(1, 1000), "Most that its mean request may take, in times the main version's."),
            ("disagreement", Rate(), "Share of its answers that may differ from the main version's."),
        )
    ):
        metavar = "SHARE" if isinstance(kind, Rate) else "TIMES"
        command = click.option(f"--max-{name}", type=kind, metavar=metavar, help=text)(command)
    return command


@click.command(short_help="Point an alias at a version, or split its traffic.")
@click.argument("task")
@click.argument("version", type=click.IntRange(min=1), required=False)
@click.option("--alias", default=PRODUCTION, show_default=True, help="The alias to move or split.")
@click.option(
    "--canary", type=Share(), metavar="SHARE", help="Give VERSION this share of the alias's traffic: 5% or 0.05."
)
@click.option("--step", type=Share(), metavar="SHARE", help="Change the share of the version that has one.")
@click.option(
    "--shadow",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="VERSION",
    help="Run it as a shadow: its answers are compared, never returned.",
)
@click.option("--no-shadow", type=click.IntRange(min=1), multiple=True, metavar="VERSION", help="Stop this shadow.")
@_bounds
@click.option("--min-rows", type=click.IntRange(1, 1_000_000), help="Rows before it is judged.  [default: 100]")
@click.option("--no-bounds", is_flag=True, help="Give the share no bounds; only sidecast rollback ends it.")
@options.registry
@options.server
@message
@wait
@options.as_json
def promote(
    task: str,
    version: int | None,
    alias: str,
    canary: int | None,
    step: int | None,
    shadow: tuple[int, ...],
    no_shadow: tuple[int, ...],
    no_bounds: bool,
    registry: str | None,
    server: str | None,
    message: str,
    wait: float | None,
    as_json: bool,
    **bounds: Any,
) -> None:
    """Point an alias of TASK at VERSION, with all of its traffic.

    With --canary, VERSION gets only a share, which --step changes later. Shares and bounds are percentages with their
    sign, 5%, or fractions, 0.05. Once VERSION breaks a bound (--max-...), the servers themselves take the share away; a
    canary for which you give no bound gets bounds of errors and latency. A shadow runs the same rows as the alias's
    main version; its answers are compared, never returned: see sidecast shadow.
    """
    bounds = {name.removeprefix("max_"): value for name, value in bounds.items()}
    changes = canary is not None or step is not None or bool(shadow or no_shadow)
    _check(version, canary, step, changes, bool(no_shadow), bounds, no_bounds)
    view = open_view(registry, server)
    if version is not None and not changes:
        before = view.aliases(task).get(alias)
        done = view.promote(task, version, alias, message)
        text = f"{task}@{alias} is version {version}"
        tell(view, done, text if before == version else moved(task, text, alias, before), wait, as_json)
        return
    name = f"{task}@{alias}"

    def changed(route: Document) -> Document:
        if version is not None and canary is not None:
            route = routes.with_canary(route, version, canary, bounds, not no_bounds)
        elif step is not None:
            route = routes.with_step(route, step, bounds, not no_bounds, name)
        return routes.with_shadows(route, shadow, no_shadow, name)

    if version is not None and canary is None:
        done = view.set_route(task, alias, version, changed(routes.plain()), None, message)
    else:
        done = _change_route(view, task, alias, changed, message)
    judged = _judged(done, by_default=canary is not None and routes.is_default(bounds))
    tell(view, done, f"{name} is {routes.in_words(done['version'], done['route'])}{judged}", wait, as_json)


def _change_route(
    view: View,
    task: str,
    alias: str,
    changed: Callable[[Document], Document],
    message: str,
    attempts: int = ATTEMPTS,
) -> Document:
    """Derive a new route from the present one; if that changes meanwhile, read it again and retry."""
    seen = view.route(task, alias)
    try:
        return view.set_route(task, alias, None, changed(seen), seen, message)
    except Exception as error:
        if attempts == 1 or not is_route_changed(error):
            raise
    return _change_route(view, task, alias, changed, message, attempts - 1)


def _check(
    version: int | None,
    canary: int | None,
    step: int | None,
    changes: bool,
    no_shadow: bool,
    bounds: Document,
    no_bounds: bool,
) -> None:
    """Raise UserError for options that exclude each other."""
    if version is None and canary is not None:
        raise UserError("--canary gives a share to a version; name it: sidecast promote TASK VERSION --canary 5%")
    if version is None and not changes:
        raise UserError("Missing argument 'VERSION'; without it, give --step, --shadow or --no-shadow")
    if version is not None and step is not None:
        raise UserError("--step takes no VERSION, it changes the share of the version that has one; or use --canary")
    if version is not None and canary is None and no_shadow:
        raise UserError("to promote VERSION ends all shadows already; leave out --no-shadow")
    has_bounds = any(value is not None for value in bounds.values())
    if canary is None and step is None and (has_bounds or no_bounds):
        raise UserError(
            "bounds (--max-..., --min-rows, --no-bounds) are for a version with a share; give --canary or --step too"
        )
    if has_bounds and no_bounds:
        raise UserError("--no-bounds excludes --max-... and --min-rows")


def _judged(done: Document, by_default: bool) -> str:
    """Say what would end the canary. `by_default`: the user gave it no bounds."""
    if not done["route"]["shares"]:
        return ""
    if not done["route"]["bounds"]:
        return f"; no bounds, so only sidecast rollback {done['task']} ends it"
    words = routes.bounds_in_words(done["route"]["bounds"])
    return f"; bounds by default: {words} (--no-bounds for none)" if by_default else f"; {words}"


@click.command(short_help="Point an alias back at the version before, or end its canary.")
@click.argument("task")
@click.option("--alias", default=PRODUCTION, show_default=True, help="The alias to roll back.")
@click.option("--to", type=click.IntRange(min=1), help="An earlier version of the alias.  [default: the one before]")
@options.registry
@options.server
@message
@wait
@options.as_json
def rollback(
    task: str,
    alias: str,
    to: int | None,
    registry: str | None,
    server: str | None,
    message: str,
    wait: float | None,
    as_json: bool,
) -> None:
    """Point an alias of TASK back at the version that it pointed at before.

    While another version has a share of its traffic, that share is taken away instead, unless --to names an earlier
    version. Right after a share was taken away, --to must say which version the alias
    gets.
    """
    view = open_view(registry, server)
    done = view.rollback(task, alias, to, message)
    text = f"{task}@{alias} is version {done['version_to']} again, was {done['version_from']}"
    if done["canary_ended"]:
        text = (
            f"the canary of {task}@{alias} is ended: version {done['version_from']} has no share any more, "
            f"version {done['version_to']} answers all"
        )
    tell(view, done, text, wait, as_json)


@click.command(short_help="Take a version out of service for good.")
@click.argument("task")
@click.argument("version", type=click.IntRange(min=1))
@options.registry
@options.server
@message
@options.as_json
def retire(task: str, version: int, registry: str | None, server: str | None, message: str, as_json: bool) -> None:
    """Take VERSION of TASK out of service. Refused while an alias points at it or its route names it."""
    done = open_view(registry, server).retire(task, version, message)
    say(as_json, done, f"{task} version {version} is retired (generation {done['generation']})")


def tell(view: View, done: Document, text: str, wait: float | None, as_json: bool) -> None:
    """Print what was done, and with `wait` the servers that serve it. Exits with 1 if not all of them do."""
    text += f" (generation {done['generation']})"
    if wait is None:
        say(as_json, done, text)
        return
    if not as_json:
        click.echo(text, nl=False)
    waited, faults = _wait(view, done, wait)
    say(as_json, done | {"wait": waited | {"faults": faults}}, "" if faults else f"; {_followed(waited)}")
    if faults:
        if not as_json:
            click.echo(f"Error: it is committed, but {'; '.join(faults)}", err=True)
        click.get_current_context().exit(1)


def _wait(view: View, done: Document, seconds: float) -> tuple[Document, list[str]]:
    """The servers that follow, and the faults: servers that are late, versions that do not load, or no answer."""
    waited: Document = {"generation": done["generation"], "served": False, "servers": []}
    try:
        waited = view.wait(done["generation"], seconds)
        return waited, view.faults(done["task"], _versions(done)) if waited["served"] else [_late(waited, seconds)]
    except KeyboardInterrupt:
        why = "interrupted"
    except Exception as error:
        if not hasattr(error, "reason"):
            raise
        why = str(error)
    return waited, [f"whether it is served could not be seen: {why}"]


def _versions(done: Document) -> set[int]:
    """The versions that a change concerns."""
    route = done.get("route", routes.plain())
    own_version = done["version" if "version" in done else "version_to"]
    return {own_version, *map(int, route["shares"]), *route["shadows"]}


def _followed(waited: Document) -> str:
    addresses = [server["address"] for server in waited["servers"]]
    return f"served by {', '.join(addresses)}" if addresses else "no server is known to follow this registry"


def _late(waited: Document, seconds: float) -> str:
    late = [server for server in waited["servers"] if server["generation"] < waited["generation"]]
    names = ", ".join(f"{server['address']} serves generation {server['generation']}" for server in late)
    return f"after {seconds:g} s not served everywhere: {names}, not {waited['generation']}"
