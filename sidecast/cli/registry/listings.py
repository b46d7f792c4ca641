"""Commands that read a registry: tasks, history."""

from datetime import UTC, datetime

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import say, show_table
from sidecast.cli.registry import routes
from sidecast.cli.registry.views import Document, View, open_view
from sidecast.cli.registry.where import show_where


@click.command(short_help="List tasks, their aliases and versions.")
@options.registry
@options.server
@click.option("--where", is_flag=True, help="Show on which servers each version is loaded, and when it was asked.")
@options.as_json
def tasks(registry: str | None, server: str | None, where: bool, as_json: bool) -> None:
    """List the tasks of a registry or of a running server, with what each alias points at and how it is split.

    For a server it also shows which versions are loaded, and why one is not.

    --where asks every server that follows the registry: its device, the bytes of each version there, since when it is
    loaded, and when it last answered a request.
    """
    if where:
        show_where(registry, server, as_json)
        return
    document = open_view(registry, server).tasks()
    if as_json or not document["tasks"]:
        say(as_json, document, "no tasks yet: sidecast publish RUN adds one")
        return
    show_table(
        ("task", "kind", "aliases", "versions", "notes"),
        [
            (task["task"], task["kind"] or "?", _aliases(task), _versions(task), _notes(task))
            for task in document["tasks"]
        ],
        below=("kind", "versions", "aliases", "notes"),
    )


def _aliases(task: Document) -> str:
    split = task["routes"]
    texts = [
        f"{alias}: {routes.in_words(version, split[alias])}" if alias in split else f"{alias} {version}"
        for alias, version in task["aliases"].items()
    ]
    return ("; " if split else ", ").join(texts) or "none"


def _versions(task: Document) -> str:
    live = [str(entry["version"]) for entry in task["versions"] if not entry["retired"]]
    return ", ".join(live[-8:] if len(live) <= 8 else ["...", *live[-8:]])


def _notes(task: Document) -> str:
    notes = [f"version {e['version']} does not load: {e['failure']}" for e in task["versions"] if e.get("failure")]
    notes += [f"version {e['version']} is untrained" for e in task["versions"] if e["untrained"] and not e["retired"]]
    for alias, version in task.get("serving", task["aliases"]).items():
        if version != task["aliases"].get(alias, version):
            notes.append(f"{alias} is still served by version {version}")
    return "; ".join(notes)


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Callback of click: ISO 8601, as UTC."""
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"give a time such as 2026-03-31T18:00:00Z (ISO 8601), got {value!r}") from None


def _show_moment(view: View, task: str | None, moment: datetime, as_json: bool) -> None:
    """Print what aliases pointed at. Raises UnknownTask for a task that never was."""
    then = view.at(moment)
    if task is not None:
        then["tasks"] = [entry for entry in then["tasks"] if entry["task"] == task]
        if not then["tasks"]:
            view.history(task, 1)
    told = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    named = f"{told} (generation {then['generation']})"
    if as_json or not then["tasks"]:
        say(as_json, {"time": told, **then}, f"{task or 'no task'} was not in the registry at {named}")
        return
    show_table(
        ("task", "alias", "version"),
        [
            (entry["task"], alias, routes.in_words(version, entry["routes"].get(alias, routes.plain())))
            for entry in then["tasks"]
            for alias, version in sorted(entry["aliases"].items()) or [("none", "")]
        ],
        title=f"at {named}",
        below=("alias", "version"),
    )


@click.command(short_help="List what changed: who, when, why.")
@click.argument("task", required=False)
@options.registry
@options.server
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest changes.")
@click.option(
    "--at",
    callback=_moment,
    metavar="TIME",
    help="Instead: what each alias pointed at then, such as 2026-03-31T18:00:00Z; without an offset, local time.",
)
@options.as_json
def history(
    task: str | None, registry: str | None, server: str | None, limit: int | None, at: datetime | None, as_json: bool
) -> None:
    """List the changes of TASK, or of the whole registry, oldest first; or with --at, which versions served then."""
    if at is not None:
        if limit is not None:
            raise UserError(
                "--at tells what served at a moment, --limit shortens the list of changes; give one of them"
            )
        _show_moment(open_view(registry, server), task, at, as_json)
        return
    show_history(open_view(registry, server).history(task, limit or 0), as_json)


def show_history(changes: list[Document], as_json: bool) -> None:
    """Print changes of a registry."""
    if as_json:
        say(True, changes, "")
        return
    show_table(
        ("generation", "time", "author", "what", "why"),
        [
            (change["generation"], change["time"], change["author"], _actions(change), change["message"])
            for change in changes
        ],
        below=("author", "what", "why"),
    )


def _actions(change: Document) -> str:
    texts = []
    for action in change["actions"]:
        if action.get("group"):
            members = f": {', '.join(action['members'])}" if action["members"] else ""
            version = f" {action['version']}" if action["version"] is not None else ""
            texts.append(f"{action['verb']} {action['group']}{version}{members}")
            continue
        target = action["task"] + (f"@{action['alias']}" if action["alias"] else "")
        if action["route"]:
            texts.append(f"{action['verb']} {target}: {routes.change_in_words(action['route'])}")
            continue
        version = f" {action['version']}" if action["version"] is not None else ""
        run = f" (run {action['run_id']})" if action["run_id"] else ""
        texts.append(f"{action['verb']} {target}{version}{run}")
    return ", ".join(texts)
