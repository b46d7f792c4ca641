"""A task taken from one registry to another: its versions, and where its aliases are.

A version is its manifest, so what the target has already keeps its number there, and importing twice is importing once.
Other versions get the target's next numbers, all of them and the aliases in one commit. What was retired there stays
retired. Routes stay behind: they are about traffic, not about versions.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal

from side_registry.blobs import Blobs, blob_path
from side_registry.documents import replacing
from side_registry.errors import ArtifactError, RegistryNotFound
from side_registry.exports import LISTING, Arriving, Export, ExportedVersion, folder_to_write, opened
from side_registry.log import Action, Publish, SetAlias
from side_registry.manifest import MAX_MANIFEST_BYTES, Blob, parse_manifest
from side_registry.parallel import Progress, at_once, unseen
from side_registry.registry import Registry
from side_registry.state import State, TaskState
from side_registry.store import Store
from side_registry.task import PRODUCTION, TaskRef

Aliases = Literal["missing", "all", "none"]
"""Which aliases an import sets: those that the target's task lacks, all as they were exported, or none."""

FILES_AT_ONCE = 2
"""Of an import: each is whole in memory while it is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    task: str
    versions: Mapping[int, int]
    """Number in the export to number here."""
    new: tuple[int, ...]
    """Numbers here that were not here before."""
    retired: tuple[int, ...] = ()
    """Numbers in the export of what is retired here, and stays so."""
    aliases: Mapping[str, int]
    """What moved: alias to version here."""
    generation: int = 0


def export_task(store: Store, ref: TaskRef, target: Path, progress: Progress = unseen) -> Export:
    """Write a task's versions that are not retired, or the one that `ref` names, to a folder or a .tar file.

    Raises:
        UnknownTask, UnknownVersion, UnknownAlias, CorruptBlob, RegistryNotFound, NotARegistry, StoreFailed.
        ArtifactError: something else is at the target, or it cannot be written.
    """
    registry, source = Registry.open(store), Blobs(store)
    export = _listing(registry, ref)
    with folder_to_write(target, export.task) as folder:
        files: dict[str, Blob] = {}
        for version in export.versions:
            data = source.read(version.manifest_sha256, MAX_MANIFEST_BYTES)
            _write(folder / blob_path(version.manifest_sha256), data)
            manifest = parse_manifest(data, f"{export.task}:{version.version}")
            files |= {blob.sha256: blob for blob in manifest.files.values()}
        step = progress("files", len(files))
        for _ in at_once(lambda blob: source.fetch(blob, folder / blob_path(blob.sha256)), files.values(), step):
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
    progress: Progress = unseen,
) -> Imported:
    """Publish an export's versions to another registry, which is made where there is none. All of it, or nothing.

    Raises:
        ArtifactError: it is no export, incomplete, damaged or unreadable; or holds what `publish` would refuse.
        NotARegistry, InvalidName, Contended, StoreFailed.
    """
    with suppress(RegistryNotFound):
        _store(where)  # a wrong address is told before all of an export is read
    with opened(source) as (folder, export, arriving):
        store = _store(where, create=True)
        registry = Registry.open(store, create=True)
        target, digests = Blobs(store), _digests(arriving)
        _upload(target, source, folder, digests, progress)
        generation, imported = registry.commit(
            lambda state: _decide(state, export, arriving, aliases), author, message or _message(export)
        )
        if not target.has(digests):  # a collection took some before our commit
            _upload(target, source, folder, digests, progress)
    return replace(imported, generation=generation)


def _store(where: str | Path | Store, *, create: bool = False) -> Store:
    return where if isinstance(where, Store) else Store.open(where, create=create)


def _listing(registry: Registry, ref: TaskRef) -> Export:
    """Without a version or an alias, all versions that are not retired; and the aliases that point to any of them."""
    state = registry.state()
    task = state.task(ref.task)
    whole = ref.version is None and ref.alias is None
    entries = [task.versions[number] for number in (task.live if whole else [state.resolve(ref)])]
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
            )
            for entry in entries
        ),
        aliases={alias: own for alias, own in task.serving.items() if own in {entry.version for entry in entries}},
    )


def _digests(arriving: Sequence[Arriving]) -> list[str]:
    """Of manifests and files, each once."""
    files = [blob.sha256 for each in arriving for blob in each.manifest.files.values()]
    return list(dict.fromkeys([*files, *(each.digest for each in arriving)]))


def _upload(target: Blobs, source: Path, folder: Path, digests: Sequence[str], progress: Progress) -> None:
    def add(digest: str) -> None:
        try:
            added = target.add((folder / blob_path(digest)).read_bytes())
        except OSError as error:
            raise ArtifactError(source, str(error.strerror or error)) from error
        if added != digest:
            raise ArtifactError(source, f"{blob_path(digest)} changed while it was imported; import it again")

    step = progress("files", len(digests))
    for _ in at_once(add, digests, step, most=FILES_AT_ONCE):
        pass


def _decide(
    state: State, export: Export, arriving: Sequence[Arriving], aliases: Aliases
) -> tuple[Sequence[Action], Imported]:
    task = state.tasks.get(export.task) or TaskState(name=export.task, deleted=True)
    here, following = (
        {task.versions[number].manifest_sha256: number for number in task.live},
        count(task.last_version + 1),
    )
    over = {entry.manifest_sha256 for entry in task.versions.values() if not task.deleted} - here.keys()
    kept = [each for each in arriving if each.digest not in over]
    numbers = {each.version: here.get(each.digest) or next(following) for each in kept}
    new = [each for each in kept if each.digest not in here]
    moves = {
        alias: version
        for alias, version in _wanted(task, export, aliases, numbers).items()
        if task.serving.get(alias) != version
    }
    imported = Imported(
        task=export.task,
        versions=numbers,
        new=tuple(numbers[each.version] for each in new),
        retired=tuple(each.version for each in arriving if each not in kept),
        aliases=moves,
    )
    publishes = [_publish(each, numbers[each.version]) for each in new]
    sets = [SetAlias(task=export.task, alias=alias, version=version) for alias, version in moves.items()]
    return [*publishes, *sets], imported


def _wanted(task: TaskState, export: Export, aliases: Aliases, numbers: Mapping[int, int]) -> dict[str, int]:
    """Where aliases should be. A new task gets a production version, as when it is published."""
    exported = {alias: numbers[version] for alias, version in export.aliases.items() if version in numbers}
    if aliases == "none":
        return {}
    if task.deleted:
        return exported or {PRODUCTION: max(numbers.values())}
    return {alias: version for alias, version in exported.items() if aliases == "all" or alias not in task.aliases}


def _publish(arriving: Arriving, version: int) -> Publish:
    manifest = arriving.manifest
    return Publish(
        task=manifest.task,
        version=version,
        manifest_sha256=arriving.digest,
        kind=manifest.spec.kind,
        backbone=manifest.backbone.fingerprint,
        run_id=manifest.run_id,
    )


def _message(export: Export) -> str:
    numbers = ", ".join(str(each.version) for each in export.versions[-8:])
    more = "... " if len(export.versions) > 8 else ""
    return f"import of {export.task} {more}{numbers} of registry {export.registry}"


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)
