"""`sidecast group`: names for several tasks that are asked together."""

from collections.abc import Sequence
from typing import Any

import click

from sidecast.cli import options
from sidecast.cli.output import say, show_table
from sidecast.cli.registry.changes import message
from sidecast.cli.registry.listings import show_history
from sidecast.cli.registry.views import Document, open_view


@click.group(short_help="Name several tasks that are asked together.")
def group() -> None:
    """Name several tasks that are asked together: sidecast predict --group NAME, PredictTasks, or the Open Inference
    model group/NAME.

    Each change of a group's list of tasks is a version of it. TASK follows production, TASK@alias that alias, and
    TASK:7 stays at version 7 until the group changes.
    """


@group.command("set", short_help="Give a group its tasks, or make it.")
@click.argument("name")
@click.argument("task", nargs=-1, required=True, metavar="TASK...")
@options.registry
@options.server
@message
@options.as_json
def set_(name: str, task: Sequence[str], registry: str | None, server: str | None, message: str, as_json: bool) -> None:
    """Give group NAME these tasks, in place of those that it has."""
    done = open_view(registry, server).set_group(name, task, message)
    again = " already" if done["version"] == done["version_from"] else ""
    say(as_json, done, f"{_named(done)}{again} (generation {done['generation']})")


@group.command("list", short_help="List groups and their tasks.")
@options.registry
@options.server
@options.as_json
def list_(registry: str | None, server: str | None, as_json: bool) -> None:
    """List the groups of a registry or of a running server."""
    groups = open_view(registry, server).groups()
    if as_json or not groups:
        say(as_json, groups, "no groups yet: sidecast group set NAME TASK... makes one")
        return
    rows = [(one["group"], one["version"], ", ".join(one["tasks"])) for one in groups]
    show_table(("group", "version", "tasks"), rows, below=("tasks",))


@group.command("history", short_help="List what changed in a group: who, when, why.")
@click.argument("name")
@options.registry
@options.server
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest changes.")
@options.as_json
def history(name: str, registry: str | None, server: str | None, limit: int | None, as_json: bool) -> None:
    """List the changes of group NAME, oldest first."""
    show_history(open_view(registry, server).history(None, limit or 0, name), as_json)


@group.command("rollback", short_help="Give a group the tasks that it had before.")
@click.argument("name")
@click.option("--to", type=click.IntRange(min=1), help="The group's version to go back to.  [default: the one before]")
@options.registry
@options.server
@message
@options.as_json
def rollback(name: str, to: int | None, registry: str | None, server: str | None, message: str, as_json: bool) -> None:
    """Give group NAME the tasks, and the versions that it named, of its version before. One commit changes all of them.

    Aliases do not move: a task that follows production goes on following it. Versions with tasks that are retired or
    deleted are skipped.
    """
    done = open_view(registry, server).rollback_group(name, to, message)
    text = f"{_named(done)} again, was version {done['version_from']} (generation {done['generation']})"
    say(as_json, done, text)


@group.command("delete", short_help="Remove a group; its tasks stay.")
@click.argument("name")
@options.registry
@options.server
@message
@options.as_json
def delete(name: str, registry: str | None, server: str | None, message: str, as_json: bool) -> None:
    """Remove group NAME. Its tasks stay."""
    generation = open_view(registry, server).delete_group(name, message)
    done: dict[str, Any] = {"group": name, "generation": generation}
    say(as_json, done, f"group {name} is deleted (generation {generation})")


def _named(done: Document) -> str:
    return f"group {done['group']} version {done['version']}: {', '.join(done['tasks'])}"
