"""Commands that look after a registry as a whole: verify, gc, export, import. They go to its store, not to a server."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from side_registry import Store, TaskRef
from side_registry.maintenance import GRACE, Collected, Verified, collect, export_task, import_task, verify
from side_registry.store import Progress, Step
from sidecast.cli import options
from sidecast.cli.output import progress_bar, say, show_table

DAMAGED = 1
"""Exit code of `verify` where something is damaged."""

SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
UNITS = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Span(click.ParamType):
    """A time such as 90s, 30m, 12h or 7d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """`90s`, `30m`, `12h` or `7d` as a timedelta."""
        if isinstance(value, timedelta):
            return value
        match = SPAN.fullmatch(value.strip())
        if match is None or len(match[1]) > 9:
            self.fail(f"give a time such as 12h or 7d; got {value!r}", param, ctx)
        return timedelta(**{UNITS[match[2]]: float(match[1])})


@click.group(short_help="Maintain a registry: verify, gc, export, import.")
def registry() -> None:
    """Maintain a registry: check it, remove unused files, move tasks to another registry."""


@registry.command("verify", short_help="Read and check everything a registry holds.")
@options.registry
@options.as_json
def verify_(registry: str | None, as_json: bool) -> None:
    """Read everything that the registry holds and check it: log, manifests, files, checkpoints.

    Exits with 1 where something is damaged. Changes nothing.
    """
    with _progress(as_json) as progress:
        verified = verify(_store(registry), progress)
    if as_json:
        say(True, _verified(verified), "")
    else:
        if verified.findings:
            show_table(
                ("level", "object", "what"),
                [(finding.level, finding.path, finding.what) for finding in verified.findings],
            )
        click.echo(_summary(verified))
    if not verified.sound:
        raise click.exceptions.Exit(DAMAGED)


@registry.command(short_help="Remove old files that no version refers to.")
@options.registry
@click.option("--grace", type=Span(), default=f"{GRACE.days}d", show_default=True, help="Younger files stay.")
@click.option("--delete", is_flag=True, help="Remove the files; without it, only list them.")
@click.option("--retired", is_flag=True, help="Files of retired versions too; they cannot be restored.")
@options.as_json
def gc(registry: str | None, grace: timedelta, delete: bool, retired: bool, as_json: bool) -> None:
    """Remove files that no version refers to, such as those of a publish that was interrupted.

    Only lists the files, unless --delete is given. Others may publish meanwhile.
    """
    with _progress(as_json) as progress:
        done = collect(_store(registry), grace=grace, delete=delete, retired=retired, progress=progress)
    if as_json:
        say(True, _collected(done), "")
        return
    if done.removed:
        show_table(
            ("file", "bytes", "written"),
            [(file.path, file.size, f"{file.modified:%Y-%m-%d %H:%M:%SZ}") for file in done.removed],
        )
    click.echo(_told(done))


@registry.command(short_help="Write a task's versions to a folder or a .tar file.")
@click.argument("task")
@click.argument("target", type=click.Path(path_type=Path))
@options.registry
@options.as_json
def export(task: str, target: Path, registry: str | None, as_json: bool) -> None:
    """Write the versions of TASK that are not retired, or only TASK:7, to TARGET: a new folder, or a .tar file."""
    with _progress(as_json) as progress:
        done = export_task(_store(registry), TaskRef.parse(task), target, progress)
    numbers = ", ".join(str(version.version) for version in done.versions)
    document = {
        "task": done.task,
        "versions": [version.version for version in done.versions],
        "aliases": done.aliases,
        "groups": [group.name for group in done.groups],
    }
    say(as_json, document | {"target": str(target)}, f"exported {done.task} version {numbers} to {target}")


@registry.command("import", short_help="Publish an exported task to another registry.")
@click.argument("source", type=click.Path(path_type=Path))
@options.registry
@click.option(
    "--aliases",
    type=click.Choice(["missing", "all", "none"]),
    default="missing",
    show_default=True,
    help="Aliases and groups to set: those that are not here yet, all as exported, none.",
)
@click.option("--message", "-m", default="", help="Why; kept in the history.")
@options.as_json
def import_(source: Path, registry: str | None, aliases: Any, message: str, as_json: bool) -> None:
    """Publish what `export` wrote to SOURCE. What the registry has already is not published again."""
    with _progress(as_json) as progress:
        done = import_task(source, _address(registry), aliases=aliases, message=message, progress=progress)
    if as_json:
        say(True, asdict(done), "")
        return
    rows = [(old, new, "new" if new in done.new else "already here") for old, new in done.versions.items()]
    rows += [(old, "", "retired here") for old in done.retired]
    show_table(("exported version", "version", ""), rows, title=f"{done.task} (generation {done.generation})")
    for alias, version in done.aliases.items():
        click.echo(f"{done.task}@{alias} is version {version}")
    for group, version in done.groups.items():
        click.echo(f"group {group} is version {version}")
    for group, lacking in done.waiting.items():
        click.echo(f"group {group} is not set yet: import {', '.join(lacking)} too")


def _address(registry: str | None) -> str:
    return options.choose(registry=registry)[1]


def _store(registry: str | None) -> Store:
    return Store.open(_address(registry))


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    with progress_bar(quiet) as bars:

        def start(what: str, count: int) -> Step:
            bar = bars.add_task(what, total=count, note="")
            return lambda: bars.advance(bar)

        yield start


def _verified(verified: Verified) -> dict[str, Any]:
    return asdict(verified) | {"sound": verified.sound}


def _summary(verified: Verified) -> str:
    damaged = sum(finding.level == "damage" for finding in verified.findings)
    held = f"{verified.tasks} tasks, {verified.versions} versions, {verified.blobs} files, {_bytes(verified.size)}"
    return f"generation {verified.generation}: {held}; " + (f"{damaged} damaged" if damaged else "sound")


def _collected(done: Collected) -> dict[str, Any]:
    removed = [{"path": file.path, "size": file.size, "modified": file.modified.isoformat()} for file in done.removed]
    counts = {"bytes": done.size, "restored": list(done.restored), "young": len(done.young), "used": done.used}
    return {"deleted": done.deleted, "removed": removed} | counts


def _told(done: Collected) -> str:
    what = f"{len(done.removed)} files, {_bytes(done.size)}"
    if done.deleted:
        first = f"removed {what}"
    else:
        first = f"--delete would remove {what}" if done.removed else "nothing to remove"
    back = f"; {len(done.restored)} came back, they are in use" if done.restored else ""
    return f"{first}; {len(done.young)} too young, {done.used} in use{back}"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
