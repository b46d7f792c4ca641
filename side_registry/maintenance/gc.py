"""Garbage collection: removes files that no version refers to, once they are old.

A publisher that dies before its commit leaves such files. Others may publish meanwhile, even the same files, and there
is no lock. So the collector first moves files to a trash, then reads the log again and moves back what a new
commit refers to, and only then empties the trash. A publisher writes every file again, which makes it young, and checks
after its commit that all still exist. So the later of the two always sees the earlier. A collection that was killed
leaves its trash; the next one moves back what is in use.
"""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from side_registry import blobs
from side_registry.blobs import Blobs, blob_path, digest_in
from side_registry.errors import ArtifactError, CorruptBlob
from side_registry.registry import Registry
from side_registry.state import VersionState
from side_registry.store import Entry, Progress, Store, no_progress, parallel_map

GRACE = timedelta(days=7)
"""Age below which no file is removed: longer than any publish takes, and than clocks may differ."""

LONGEST = timedelta(days=36_500)
"""Longest grace period; no file is that old."""

TRASH = "trash"
MANIFEST_READS = 4
"""Times that a missing manifest is looked for: another collection may be moving it."""
CLOCK = "clock-"
TIME = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did."""

    removed: tuple[Entry, ...]
    """In a dry run: what would be removed."""
    restored: tuple[str, ...]
    """Digests moved back from a trash: published meanwhile, or left there by a collection that was killed."""
    young: tuple[Entry, ...]
    """Files that no version refers to, younger than the grace period."""
    used: int
    """Number of files that versions refer to."""
    deleted: bool
    """False for a dry run."""

    @property
    def size(self) -> int:
        """Bytes removed."""
        return sum(entry.size for entry in self.removed)


def collect(
    store: Store,
    *,
    grace: timedelta = GRACE,
    delete: bool = False,
    retired: bool = False,
    progress: Progress = no_progress,
) -> Collected:
    """Remove files older than `grace` that no version refers to; without `delete` only list them (a dry run).

    Args:
        retired: also remove the files of retired versions, which cannot be served any more. Their manifests stay.
        progress: called before all manifests are read.

    Raises:
        RegistryNotFound, NotARegistry, StoreFailed.
        UnreadableCommit, CorruptBlob, ArtifactError: it is unknown which files are in use, so nothing is removed.
    """
    grace = min(grace, LONGEST)
    references = _References(store, retired, progress, restores=delete)
    restored = _restore(store, references) if delete else ()
    now = _store_time(store) if delete else datetime.now(UTC)
    listed = [entry for entry in store.entries(blobs.FOLDER) if digest_in(entry.path)]
    used = references.digests()  # read after the list, so that a file which is listed and unused was never in use
    unused = [entry for entry in listed if digest_in(entry.path) not in used] + store.drafts()
    old = tuple(entry for entry in unused if entry.modified <= now - grace)
    young = tuple(entry for entry in unused if entry.modified > now - grace)
    if not delete:
        return Collected(removed=old, restored=(), young=young, used=len(used), deleted=False)
    removed, returned = _remove(store, old, now - grace, references, _new_trash(now))
    _empty_old_trash(store, now - max(grace, timedelta(days=1)))
    return Collected(removed=removed, restored=(*restored, *returned), young=young, used=len(used), deleted=True)


class _References:
    """The digests that versions refer to. Reads each manifest once, however often it is called."""

    def __init__(self, store: Store, retired: bool, progress: Progress, *, restores: bool) -> None:
        self._store = store
        self._restores = restores
        self._registry = Registry.open(store)
        self._blobs = Blobs(store)
        self._retired = retired
        self._progress = progress
        self._files: dict[str, frozenset[str]] = {}

    def manifests(self) -> set[str]:
        """Of manifests, by the log as it is now."""
        return {entry.manifest_sha256 for entry in self._entries()}

    def digests(self) -> set[str]:
        """Of manifests and files, by the log as it is now."""
        for _ in range(MANIFEST_READS - 1):
            try:
                return self._digests()
            except CorruptBlob:  # perhaps of a version that was committed just now, and in some collection's trash
                if self._restores:
                    _move_back(self._store, self.manifests)
        return self._digests()

    def _digests(self) -> set[str]:
        entries = self._entries()
        new = {entry.manifest_sha256: entry for entry in entries if entry.manifest_sha256 not in self._files}
        step = self._progress("versions", len(new))
        self._files.update(zip(new, parallel_map(self._read, new.values(), step), strict=True))
        kept = [entry for entry in entries if not (self._retired and entry.retired)]
        files = {digest for entry in kept for digest in self._files[entry.manifest_sha256]}
        return files | {entry.manifest_sha256 for entry in entries}

    def _entries(self) -> list[VersionState]:
        return [entry for task in self._registry.state().tasks.values() for entry in task.versions.values()]

    def _read(self, entry: VersionState) -> frozenset[str]:
        """The files of a version; none of a retired one whose manifest is damaged, which cannot be served."""
        try:
            manifest = self._blobs.artifact(entry.manifest_sha256).manifest
        except (CorruptBlob, ArtifactError):
            if entry.retired:
                return frozenset()
            raise
        return frozenset(blob.sha256 for blob in manifest.files.values())


def _remove(
    store: Store, old: Iterable[Entry], before: datetime, references: _References, trash: str
) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Returns the removed entries, and the digests that were moved back."""
    moved = [entry for entry in old if _move_to_trash(store, entry, before, trash)]
    returned = _restore(store, references) if moved else ()
    for path in store.list(trash):
        store.remove(path)
    return tuple(entry for entry in moved if digest_in(entry.path) not in returned), returned


def _move_to_trash(store: Store, entry: Entry, before: datetime, trash: str) -> bool:
    """False when the file is gone, or no longer old because it is published again."""
    digest = digest_in(entry.path)
    if digest is None:  # a draft
        store.remove(entry.path)
        return True
    current = store.find(entry.path)
    if current is None or current.modified > before:
        return False
    return store.move(entry.path, f"{trash}/{digest}")


def _restore(store: Store, references: _References) -> tuple[str, ...]:
    """Move what versions refer to back from every trash: manifests first, because they name the files."""
    manifests = _move_back(store, references.manifests)
    return manifests + _move_back(store, references.digests)


def _move_back(store: Store, used: Callable[[], set[str]]) -> tuple[str, ...]:
    """The digests that were moved back. Calls `used` only when there is a trash."""
    trashed = [(path, path.rpartition("/")[2]) for path in store.list(TRASH)]
    wanted = used() if trashed else set()
    return tuple(digest for path, digest in trashed if digest in wanted and store.move(path, blob_path(digest)))


def _empty_old_trash(store: Store, before: datetime) -> None:
    """Remove the trash of collections that were killed: too old to be of one that still runs."""
    for entry in store.entries(TRASH):
        name = entry.path.split("/")[1]
        if entry.modified < before if name.startswith(CLOCK) else name < f"{before:{TIME}}":
            store.remove(entry.path)


def _new_trash(now: datetime) -> str:
    """Folder of one collection's trash; its name begins with the time."""
    return f"{TRASH}/{now:{TIME}}-{uuid.uuid4().hex[:8]}"


def _store_time(store: Store) -> datetime:
    """Now, by the clock that dates the store's objects."""
    path = f"{TRASH}/{CLOCK}{uuid.uuid4().hex}"
    store.overwrite(path, b"")
    clock = store.find(path)
    store.remove(path)
    return clock.modified if clock else datetime.now(UTC)
