"""`sidecast publish`: put a run into a registry as its task's next version, behind a gate where one is given."""

from typing import Any

import click

from side_registry import read_artifact
from side_registry.manifest import check_publishable
from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.registry.changes import PRODUCTION, message, moved, tell, wait
from sidecast.cli.registry.publish_gate import GateArguments, gate_options, gate_words, publish_gated
from sidecast.cli.registry.views import Document, open_view
from sidecast.cli.settings import GroupedCommand


@click.command(cls=GroupedCommand, short_help="Put a run's side network in the registry as its task's next version.")
@click.argument("run")
@options.registry
@options.server
@click.option("--promote", is_flag=True, help="Point production at the new version: short for --alias production.")
@click.option("--alias", help="Alias to point at the new version, such as production or canary.")
@click.option("--allow-untrained", is_flag=True, help="Publish a run that no training has changed (sidecast init).")
@message
@wait
@gate_options
@options.as_json
def publish(
    run: str,
    registry: str | None,
    server: str | None,
    promote: bool,
    alias: str | None,
    allow_untrained: bool,
    message: str,
    wait: float | None,
    as_json: bool,
    **gate: Any,
) -> None:
    """Publish the run folder RUN as its task's next version.

    A new task's first version becomes production. A later one moves no alias without --promote or --alias: callers
    still get the version that they had.

    With --require or --better-than, the run answers the labelled rows of --data first, as sidecast evaluate does. If it
    does not measure what is required, nothing is published, and the exit code is 1. The figures are kept with the
    version and in the history.
    """
    if promote and alias is not None:
        raise UserError("--promote is short for --alias production; give one of the two")
    options.choose(registry=registry, server=server)
    artifact = read_artifact(run)
    check_publishable(artifact.manifest, run, allow_untrained=allow_untrained)  # before a registry is made for it
    arguments = GateArguments.of(gate)
    record = arguments.measure(artifact, run, registry, server, as_json=as_json) if arguments.is_given else None
    view = open_view(registry, server, create=True)
    before = view.aliases(artifact.manifest.task)
    moving = PRODUCTION if promote else alias
    if record is None:
        done = view.publish(run, moving, message, allow_untrained)
    else:
        done = publish_gated(view, artifact, record, moving, message, allow_untrained)
    production = done["aliases"].get(PRODUCTION, before.get(PRODUCTION))
    text = _published(done, before, production)
    if record is not None:
        text += f"; {gate_words(record)}"
    tell(view, done | {"production": production} | ({"gate": record} if record else {}), text, wait, as_json)


def _published(done: Document, before: dict[str, int], production: int | None) -> str:
    """What a publish did, which version callers get now, and the command that changes that.

    Args:
        before: the version of each alias before.
        production: the version that production points at now.
    """
    task, version = done["task"], done["version"]
    name = f"{task} version {version}"
    texts = [f"{name} was published before from this very run" if done["already"] else f"published {name}"]
    texts += [moved(task, f"{alias} now points at it", alias, before.get(alias)) for alias in done["aliases"]]
    if production == version:
        return "; ".join(texts if done["aliases"] else [*texts, f"{PRODUCTION} points at it"])
    next_command = options.command_here("promote", task, version)
    if production is None:
        return "; ".join([*texts, f"{task} has no {PRODUCTION} version yet: {next_command}"])
    return "; ".join(
        [*texts, f"callers still get version {production}: {next_command} moves them to version {version}"]
    )
