"""Commands that change a registry: publish, promote, rollback, retire. Each is one commit."""

import click

from side_registry import read_artifact
from sidecast.cli import options
from sidecast.cli.output import say
from sidecast.cli.views import open_view

PRODUCTION = "production"

message = click.option("--message", "-m", default="", help="Why; kept in the history.")


@click.command(short_help="Put a run's side network in the registry as its task's next version.")
@click.argument("run")
@options.registry
@options.server
@click.option("--alias", help="Alias to point at the new version, such as production or canary.")
@message
@options.as_json
def publish(run: str, registry: str | None, server: str | None, alias: str | None, message: str, as_json: bool) -> None:
    """Publish the run folder RUN as its task's next version.

    Without --alias, a new task's first version becomes production; a later one moves no alias.
    """
    options.choose(registry=registry, server=server)
    read_artifact(run)  # before a registry is made for it
    done = open_view(registry, server, create=True).publish(run, alias, message)
    name = f"{done['task']} version {done['version']}"
    text = f"{name} was published before from this very run" if done["already"] else f"published {name}"
    moved = ", ".join(done["aliases"])
    if moved:
        text += f"; {moved} now points at it"
    elif not done["already"]:
        text += f"; no alias moved: sidecast promote {done['task']} {done['version']} makes it production"
    say(as_json, done, f"{text} (generation {done['generation']})")


@click.command(short_help="Point an alias at a version.")
@click.argument("task")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--alias", default=PRODUCTION, show_default=True, help="The alias to move.")
@options.registry
@options.server
@message
@options.as_json
def promote(
    task: str, version: int, alias: str, registry: str | None, server: str | None, message: str, as_json: bool
) -> None:
    """Point an alias of TASK at VERSION."""
    done = open_view(registry, server).promote(task, version, alias, message)
    say(as_json, done, f"{task}@{alias} is version {version} (generation {done['generation']})")


@click.command(short_help="Point an alias back at the version before.")
@click.argument("task")
@click.option("--alias", default=PRODUCTION, show_default=True, help="The alias to roll back.")
@click.option("--to", type=click.IntRange(min=1), help="An earlier version of the alias.  [default: the one before]")
@options.registry
@options.server
@message
@options.as_json
def rollback(
    task: str,
    alias: str,
    to: int | None,
    registry: str | None,
    server: str | None,
    message: str,
    as_json: bool,
) -> None:
    """Point an alias of TASK back at the version that it pointed at before."""
    done = open_view(registry, server).rollback(task, alias, to, message)
    text = f"{task}@{alias} is version {done['version_to']} again, was {done['version_from']}"
    say(as_json, done, f"{text} (generation {done['generation']})")


@click.command(short_help="Take a version out of service for good.")
@click.argument("task")
@click.argument("version", type=click.IntRange(min=1))
@options.registry
@options.server
@message
@options.as_json
def retire(task: str, version: int, registry: str | None, server: str | None, message: str, as_json: bool) -> None:
    """Take VERSION of TASK out of service. A version that an alias points at is refused: promote another first."""
    done = open_view(registry, server).retire(task, version, message)
    say(as_json, done, f"{task} version {version} is retired (generation {done['generation']})")
