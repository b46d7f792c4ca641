"""Garbage collection: removes files that no version refers to, once they are old.

Such files are what a publisher leaves that dies before its commit. Others may publish meanwhile, even those very files,
and nobody locks. So files go into a trash first; then the log is read again, and what a new commit refers to goes back;
only then is the trash emptied. A publisher in turn writes every file anew, which makes it young, and looks after its
commit whether all are still there. Whichever of the two comes last sees the other. A collection that was stopped leaves
its trash, and the next one puts back what is in use.
"""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from side_registry import blobs
from side_registry.blobs import Blobs, blob_path
from side_registry.errors import ArtifactError, CorruptBlob
from side_registry.manifest import MAX_MANIFEST_BYTES, parse_manifest
from side_registry.parallel import Progress, at_once, unseen
from side_registry.registry import Registry
from side_registry.state import VersionState
from side_registry.store import Entry, Store

GRACE = timedelta(days=7)
"""How long a file may wait for its commit. Longer than any publish takes, and than clocks may differ."""

LONGEST = timedelta(days=36_500)
"""No file is that old."""

TRASH = "trash"
LOOKS = 4
"""A manifest that is missing is looked for so often: others may be moving it."""
CLOCK = "clock-"
TIME = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    removed: tuple[Entry, ...]
    """Or what would be, in a dry run."""
    restored: tuple[str, ...]
    """Digests that came back: somebody published them meanwhile, or an earlier collection was stopped."""
    young: tuple[Entry, ...]
    """No version refers to them, and they are younger than the grace period."""
    used: int
    """Files that versions refer to."""
    deleted: bool
    """False: a dry run."""

    @property
    def size(self) -> int:
        """Bytes removed."""
        return sum(entry.size for entry in self.removed)


def collect(
    store: Store, *, grace: timedelta = GRACE, delete: bool = False, retired: bool = False, progress: Progress = unseen
) -> Collected:
    """Remove files older than `grace` that no version refers to; without `delete` only say which.

    Args:
        retired: files of retired versions too, which nobody can serve any more. Their manifests stay.

    Raises:
        RegistryNotFound, NotARegistry, StoreFailed.
        UnreadableCommit, CorruptBlob, ArtifactError: what is in use cannot be told, so nothing is removed.
    """
    grace = min(grace, LONGEST)
    uses = _Uses(store, retired, progress, restores=delete)
    restored = _put_back(store, uses) if delete else ()
    now = _store_time(store) if delete else datetime.now(UTC)
    listed = [entry for entry in store.entries(blobs.FOLDER) if _digest(entry.path)]
    used = uses.digests()  # after the list: of what is in both, nothing is idle
    idle = [entry for entry in listed if _digest(entry.path) not in used] + store.drafts()
    old = tuple(entry for entry in idle if entry.modified <= now - grace)
    young = tuple(entry for entry in idle if entry.modified > now - grace)
    removed, returned = old, ()
    if delete:
        removed, returned = _remove(store, old, now - grace, uses, _trash(now))
        _empty_old_trash(store, now - max(grace, timedelta(days=1)))
    return Collected(removed=removed, restored=(*restored, *returned), young=young, used=len(used), deleted=delete)


class _Uses:
    """Which digests versions refer to. Reads each manifest once, however often it is asked."""

    def __init__(self, store: Store, retired: bool, progress: Progress, *, restores: bool) -> None:
        self._store, self._restores = store, restores
        self._registry, self._blobs = Registry.open(store), Blobs(store)
        self._retired, self._progress = retired, progress
        self._files: dict[str, frozenset[str]] = {}

    def manifests(self) -> set[str]:
        return {entry.manifest_sha256 for entry in self._entries()}

    def digests(self) -> set[str]:
        """Of manifests and files, by the log as it is now."""
        for _ in range(LOOKS - 1):
            try:
                return self._digests()
            except CorruptBlob:  # of a version committed just now: a collection has it in its trash, or had it
                if self._restores:
                    _return(self._store, self.manifests)
        return self._digests()

    def _digests(self) -> set[str]:
        entries = self._entries()
        new = {entry.manifest_sha256: entry for entry in entries if entry.manifest_sha256 not in self._files}
        step = self._progress("versions", len(new))
        self._files.update(zip(new, at_once(self._read, new.values(), step), strict=True))
        kept = [entry for entry in entries if not (self._retired and entry.retired)]
        files = {digest for entry in kept for digest in self._files[entry.manifest_sha256]}
        return files | {entry.manifest_sha256 for entry in entries}

    def _entries(self) -> list[VersionState]:
        return [entry for task in self._registry.state().tasks.values() for entry in task.versions.values()]

    def _read(self, entry: VersionState) -> frozenset[str]:
        """The files of a version. Of a retired one whose manifest is damaged none: nobody can serve it."""
        try:
            data = self._blobs.read(entry.manifest_sha256, MAX_MANIFEST_BYTES)
            manifest = parse_manifest(data, blob_path(entry.manifest_sha256))
        except (CorruptBlob, ArtifactError):
            if entry.retired:
                return frozenset()
            raise
        return frozenset(blob.sha256 for blob in manifest.files.values())


def _remove(
    store: Store, old: Iterable[Entry], before: datetime, uses: _Uses, trash: str
) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """What was removed, and the digests of what came back."""
    moved = [entry for entry in old if _throw_away(store, entry, before, trash)]
    returned = _put_back(store, uses) if moved else ()
    for path in store.list(trash):
        store.remove(path)
    return tuple(entry for entry in moved if _digest(entry.path) not in returned), returned


def _throw_away(store: Store, entry: Entry, before: datetime, trash: str) -> bool:
    """False when it is gone, or no longer old: somebody publishes it again."""
    digest = _digest(entry.path)
    if digest is None:  # a draft
        store.remove(entry.path)
        return True
    found = store.find(entry.path)
    if found is None or found.modified > before:
        return False
    return store.move(entry.path, f"{trash}/{digest}")


def _put_back(store: Store, uses: _Uses) -> tuple[str, ...]:
    """Return from every trash what versions refer to: manifests first, which tell of the files."""
    back = _return(store, uses.manifests)
    return back + _return(store, uses.digests)


def _return(store: Store, used: Callable[[], set[str]]) -> tuple[str, ...]:
    """The digests that came back. Asks what is used only where there is a trash."""
    thrown = [(path, path.rpartition("/")[2]) for path in store.list(TRASH)]
    wanted = used() if thrown else set()
    return tuple(digest for path, digest in thrown if digest in wanted and store.move(path, blob_path(digest)))


def _empty_old_trash(store: Store, before: datetime) -> None:
    """Of collections that were stopped, and surely do not go on."""
    for entry in store.entries(TRASH):
        name = entry.path.split("/")[1]
        if entry.modified < before if name.startswith(CLOCK) else name < f"{before:{TIME}}":
            store.remove(entry.path)


def _trash(now: datetime) -> str:
    """One collection's own, and when it was filled."""
    return f"{TRASH}/{now:{TIME}}-{uuid.uuid4().hex[:8]}"


def _store_time(store: Store) -> datetime:
    """Now, by the clock that dates the store's objects."""
    path = f"{TRASH}/{CLOCK}{uuid.uuid4().hex}"
    store.overwrite(path, b"")
    found = store.find(path)
    store.remove(path)
    return found.modified if found else datetime.now(UTC)


def _digest(path: str) -> str | None:
    match = blobs.NAME.fullmatch(path)
    return match["sha256"] if match else None
