"""A task copied from one registry to another: its versions, its aliases and the groups that have it.

A version is identified by its manifest, so one that the target has already keeps its number there, and a second import
changes nothing. Other versions get the target's next numbers, all of them and the aliases in one commit. A version that
is retired in the target stays retired. A group arrives with the last of its tasks. Routes are not copied: they are
about traffic, not about versions.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal

from side_registry.blobs import Blobs, blob_path
from side_registry.decisions import publish_action
from side_registry.documents import replacing
from side_registry.errors import ArtifactError, InvalidSignature, RegistryNotFound
from side_registry.log import Action, SetAlias
from side_registry.maintenance.exports import (
    LISTING,
    Export,
    ExportedVersion,
    VerifiedVersion,
    folder_to_write,
    open_export,
)
from side_registry.maintenance.group_transfer import ImportedGroups, groups_of, import_groups
from side_registry.manifest import Blob
from side_registry.registry import Registry
from side_registry.specs.task import PRODUCTION, TaskRef
from side_registry.state import State, TaskState, state_after
from side_registry.store import Progress, Store, no_progress, parallel_map

Aliases = Literal["missing", "all", "none"]
"""Which aliases and groups an import sets: those that the target lacks, all as they were exported, or none."""

UPLOAD_THREADS = 2
"""Files that an import uploads in parallel: each is whole in memory meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did in the target registry."""

    task: str
    versions: Mapping[int, int]
    """Number in the export to number in the target."""
    new: tuple[int, ...]
    """Numbers in the target that are new there."""
    retired: tuple[int, ...] = ()
    """Numbers in the export of versions that are retired in the target, and stay so."""
    aliases: Mapping[str, int]
    """Aliases that moved, to versions of the target."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Groups that changed, and their version in the target."""
    waiting: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Groups that the target lacks, and those of their tasks that it lacks too, as they were exported."""
    generation: int = 0


def export_task(store: Store, ref: TaskRef, target: Path, progress: Progress = no_progress) -> Export:
    """Write a task's versions that are not retired, or the one that `ref` names, to a folder or a .tar file.

    Raises:
        UnknownTask, UnknownVersion, UnknownAlias, CorruptBlob, RegistryNotFound, NotARegistry, StoreFailed.
        ArtifactError: something else is at the target, or it cannot be written.
    """
    source = Blobs(store)
    export = _listing(Registry.open(store), ref)
    with folder_to_write(target, export.task) as folder:
        files: dict[str, Blob] = {}
        for version in export.versions:
            artifact = source.artifact(version.manifest_sha256, f"{export.task}:{version.version}")
            _write(folder / blob_path(version.manifest_sha256), artifact.manifest_bytes)
            files |= {blob.sha256: blob for blob in artifact.manifest.files.values()}
        step = progress("files", len(files))
        for _ in parallel_map(lambda blob: source.fetch(blob, folder / blob_path(blob.sha256)), files.values(), step):
            pass
        _write(folder / LISTING, export.to_json(indent=2))
    return export


def import_task(
    source: Path,
    where: str | Path | Store,
    *,
    aliases: Aliases = "missing",
    author: str | None = None,
    message: str = "",
    progress: Progress = no_progress,
) -> Imported:
    """Publish an export's versions to another registry, which is created if there is none. All of it, or nothing.

    Raises:
        ArtifactError: it is no export, incomplete, damaged or unreadable; or holds what `publish` would refuse.
        NotARegistry, InvalidName, Contended, StoreFailed.
    """
    with suppress(RegistryNotFound):
        _store(where)  # a wrong address fails before all of the export is read
    with open_export(source) as (folder, export, versions):
        store = _store(where, create=True)
        registry = Registry.open(store, create=True)
        target = Blobs(store)
        digests = _digests(versions)
        _upload(target, source, folder, digests, progress)
        _add_signatures(registry, source, versions)
        generation, imported = registry.commit(
            lambda state: _decide(state, export, versions, aliases), author, message or _message(export)
        )
        if not target.has(digests):  # a garbage collection removed some before the commit
            _upload(target, source, folder, digests, progress)
    return replace(imported, generation=generation)


def _store(where: str | Path | Store, *, create: bool = False) -> Store:
    return where if isinstance(where, Store) else Store.open(where, create=create)


def _listing(registry: Registry, ref: TaskRef) -> Export:
    """The named version, or all that are not retired, and the aliases that point to them."""
    state = registry.state()
    task = state.task(ref.task)
    names_all = ref.version is None and ref.alias is None
    numbers = task.live if names_all else (state.resolve(ref),)
    entries = [task.versions[number] for number in numbers]
    return Export(
        registry=registry.id,
        task=task.name,
        versions=tuple(
            ExportedVersion(
                version=entry.version,
                manifest_sha256=entry.manifest_sha256,
                published_at=entry.published_at,
                author=entry.author,
                message=entry.message,
                signatures=tuple(
                    signature.decode("utf-8", "replace") for signature in registry.signatures(entry.manifest_sha256)
                ),
            )
            for entry in entries
        ),
        aliases={alias: number for alias, number in task.serving.items() if number in numbers},
        groups=groups_of(state, task.name),
    )


def _digests(versions: Sequence[VerifiedVersion]) -> list[str]:
    """Of files and manifests, without repetition."""
    files = [blob.sha256 for version in versions for blob in version.manifest.files.values()]
    return list(dict.fromkeys([*files, *(version.manifest_sha256 for version in versions)]))


def _add_signatures(registry: Registry, source: Path, versions: Sequence[VerifiedVersion]) -> None:
    for version in versions:
        for signature in version.signatures:
            try:
                registry.add_signature(version.manifest_sha256, signature.encode())
            except InvalidSignature as error:
                raise ArtifactError(source, f"a signature of version {version.version}: {error.why}") from None


def _upload(target: Blobs, source: Path, folder: Path, digests: Sequence[str], progress: Progress) -> None:
    def add(digest: str) -> None:
        try:
            added = target.add((folder / blob_path(digest)).read_bytes())
        except OSError as error:
            raise ArtifactError(source, str(error.strerror or error)) from error
        if added != digest:
            raise ArtifactError(source, f"{blob_path(digest)} changed while it was imported; import it again")

    step = progress("files", len(digests))
    for _ in parallel_map(add, digests, step, max_threads=UPLOAD_THREADS):
        pass


def _decide(
    state: State, export: Export, versions: Sequence[VerifiedVersion], aliases: Aliases
) -> tuple[Sequence[Action], Imported]:
    task = state.tasks.get(export.task) or TaskState(name=export.task, deleted=True)
    live = {task.versions[number].manifest_sha256: number for number in task.live}
    retired = {entry.manifest_sha256 for entry in task.versions.values() if not task.deleted} - live.keys()
    next_numbers = count(task.last_version + 1)
    kept = [version for version in versions if version.manifest_sha256 not in retired]
    numbers = {version.version: live.get(version.manifest_sha256) or next(next_numbers) for version in kept}
    new = [version for version in kept if version.manifest_sha256 not in live]
    wanted = _wanted_aliases(task, export, aliases, numbers)
    moves = {alias: number for alias, number in wanted.items() if task.serving.get(alias) != number}
    publishes = [publish_action(version.manifest, numbers[version.version], version.manifest_sha256) for version in new]
    actions = [
        *publishes,
        *(SetAlias(task=export.task, alias=alias, version=number) for alias, number in moves.items()),
    ]
    groups = _groups(state, actions, export, aliases)
    imported = Imported(
        task=export.task,
        versions=numbers,
        new=tuple(numbers[version.version] for version in new),
        retired=tuple(version.version for version in versions if version not in kept),
        aliases=moves,
        groups=groups.changed,
        waiting=groups.waiting,
    )
    return [*actions, *groups.actions], imported


def _groups(state: State, actions: Sequence[Action], export: Export, aliases: Aliases) -> ImportedGroups:
    """What happens to groups, once these actions have happened."""
    if aliases == "none":
        return ImportedGroups()
    after = state_after(state, actions)
    return import_groups(after, export.groups, replaces=aliases == "all")


def _wanted_aliases(task: TaskState, export: Export, aliases: Aliases, numbers: Mapping[int, int]) -> dict[str, int]:
    """The version that each alias should point to. A new task gets a production version, as when it is published."""
    exported = {alias: numbers[version] for alias, version in export.aliases.items() if version in numbers}
    if aliases == "none":
        return {}
    if task.deleted:
        return exported or {PRODUCTION: max(numbers.values())}
    return {alias: version for alias, version in exported.items() if aliases == "all" or alias not in task.aliases}


def _message(export: Export) -> str:
    numbers = ", ".join(str(version.version) for version in export.versions[-8:])
    more = "... " if len(export.versions) > 8 else ""
    return f"import of {export.task} {more}{numbers} of registry {export.registry}"


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)
