"""Commands that read a registry: tasks, history."""

import click

from sidecast.cli import options
from sidecast.cli.output import say, show_table
from sidecast.cli.registry import routes
from sidecast.cli.registry.views import Document, open_view
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
        below=("versions", "aliases", "notes"),
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


@click.command(short_help="List what changed: who, when, why.")
@click.argument("task", required=False)
@options.registry
@options.server
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest changes.")
@options.as_json
def history(task: str | None, registry: str | None, server: str | None, limit: int | None, as_json: bool) -> None:
    """List the changes of TASK, or of the whole registry, oldest first."""
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
        below=("what", "why"),
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
