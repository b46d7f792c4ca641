"""What each verb does to a state: pure functions from the newest state to the actions that follow from it.

A writer that lost a race decides again. No actions mean that it is so already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from side_registry.errors import NothingToRollBack, VersionInUse
from side_registry.log import Action, DeleteTask, Publish, Retire, Rollback, SetAlias
from side_registry.manifest import Manifest
from side_registry.state import State, TaskState, rollback_target
from side_registry.task import PRODUCTION


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    task: str
    version: int
    generation: int = 0
    aliases: Mapping[str, int]
    """What this publish moved: alias to version."""
    already: bool
    """The same manifest was published before, as this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    task: str
    alias: str
    version_from: int
    version_to: int
    generation: int = 0


def publish(state: State, manifest: Manifest, digest: str, alias: str | None) -> tuple[Sequence[Action], Published]:
    """A task's first version becomes production unless `alias` says otherwise; later ones move no other alias."""
    task = state.tasks.get(manifest.task) or TaskState(name=manifest.task, deleted=True)
    same = next((number for number in task.live if task.versions[number].manifest_sha256 == digest), None)
    version = same or task.last_version + 1
    wanted = PRODUCTION if alias is None and task.deleted else alias
    moves = _moves(task, wanted, version) if wanted else []
    published = Published(
        task=task.name,
        version=version,
        aliases={move.alias: move.version for move in moves},
        already=same is not None,
    )
    return [*([] if same else [_publish(manifest, version, digest)]), *moves], published


def set_alias(state: State, task: str, alias: str, version: int) -> Sequence[Action]:
    found = state.task(task)
    return _moves(found, alias, found.live_entry(version).version)


def rollback(state: State, task: str, alias: str, to: int | None) -> tuple[Sequence[Action], Rolled]:
    found = state.task(task)
    current = found.at(alias)
    if to is not None:
        found.live_entry(to)
    target = rollback_target(found, alias, to)
    if target is None:
        raise NothingToRollBack(task, alias, current, to)
    rolled = Rolled(task=task, alias=alias, version_from=current, version_to=target)
    return [Rollback(task=task, alias=alias, version_from=current, version_to=target)], rolled


def retire(state: State, task: str, version: int) -> Sequence[Action]:
    found = state.task(task)
    if found.entry(version).retired:
        return []
    if held := [alias for alias, pointed in found.serving.items() if pointed == version]:
        raise VersionInUse(task, version, held)
    return [Retire(task=task, version=version)]


def delete_task(state: State, task: str) -> Sequence[Action]:
    return [DeleteTask(task=state.task(task).name)]


def _publish(manifest: Manifest, version: int, digest: str) -> Publish:
    return Publish(
        task=manifest.task,
        version=version,
        manifest_sha256=digest,
        kind=manifest.spec.kind,
        backbone=manifest.backbone.fingerprint,
        run_id=manifest.run_id,
    )


def _moves(task: TaskState, alias: str, version: int) -> list[SetAlias]:
    if task.serving.get(alias) == version:
        return []
    return [SetAlias(task=task.name, alias=alias, version=version)]
