"""Everything a registry holds, read and checked: the log, manifests, files, checkpoints, and what does not belong.

Reads all of it and changes nothing. What it finds is damage, which harms readers now or later, or a note. It may run
while others publish: what is committed after its look at the log is not judged.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from side_registry import blobs, checkpoints
from side_registry.blobs import Blobs, blob_path
from side_registry.checkpoints import read_checkpoint
from side_registry.collect import TRASH
from side_registry.errors import ArtifactError, CorruptBlob, UnreadableCommit
from side_registry.log import Commit, Log, log_path
from side_registry.manifest import MAX_MANIFEST_BYTES, Blob, Manifest, parse_manifest
from side_registry.marker import find_marker
from side_registry.parallel import Progress, Step, at_once, unseen
from side_registry.state import Fold, State, TaskState, VersionState
from side_registry.store import Entry, Store

AGAIN = "publish its run again to restore it"
LOST = "empty, and the last: stop every server and publisher that uses this registry, then remove it"

LOG_NAME = re.compile(r"log/\d{20}\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    level: Literal["damage", "note"]
    path: str
    """Of the object."""
    what: str
    """What is wrong, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    generation: int
    """Up to where the log is sound."""
    tasks: int
    """Deleted ones too."""
    versions: int
    blobs: int
    size: int
    """Bytes of the blobs."""
    findings: tuple[Finding, ...]
    """Damage first."""

    @property
    def sound(self) -> bool:
        """Nothing is damaged."""
        return all(finding.level == "note" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class _Use:
    """What a blob is for."""

    what: str
    size: int | None = None
    """Bytes, where a manifest says so."""


@dataclass(slots=True)
class _Found:
    """What the log says, and what was noticed on the way."""

    state: State = field(default_factory=State)
    kept: dict[int, State] = field(default_factory=dict)
    """The states that checkpoints should hold, by generation."""
    findings: list[Finding] = field(default_factory=list)

    def damage(self, path: str, what: str) -> None:
        self.findings.append(Finding(level="damage", path=path, what=what))

    def note(self, path: str, what: str) -> None:
        self.findings.append(Finding(level="note", path=path, what=what))


def verify(store: Store, progress: Progress = unseen) -> Verified:
    """Read a whole registry and check it.

    Raises:
        RegistryNotFound, NotARegistry, StoreFailed.
    """
    find_marker(store, create=False)
    found = _Found()
    kept = store.list("checkpoints")  # before the log: it goes further than they do
    _check_log(store, found, {_generation(path) for path in kept}, progress)
    _check_checkpoints(store, found, kept)
    entries = store.entries(blobs.FOLDER)  # after the log: what it names was there before
    contents = _measure(store, entries, progress)
    used = _check_versions(store, found, contents, progress)
    _check_blobs(entries, contents, used, found)
    if left := store.list(TRASH):
        found.note(TRASH, f"{len(left)} files, left by a gc that was stopped; the next gc --delete sees to them")
    return Verified(
        generation=found.state.generation,
        tasks=len(found.state.tasks),
        versions=sum(len(task.versions) for task in found.state.tasks.values()),
        blobs=len(contents),
        size=sum(entry.size for entry in entries),
        findings=tuple(sorted(found.findings, key=lambda each: each.level != "damage")),
    )


def _check_log(store: Store, found: _Found, wanted: set[int], progress: Progress) -> None:
    """Fold every commit, and keep the states of wanted generations; what follows an unreadable one cannot be judged."""
    paths = store.list("log")
    numbers = [int(path[4:-5]) for path in paths if LOG_NAME.fullmatch(path)]
    for path in paths:
        if not LOG_NAME.fullmatch(path):
            found.note(path, "no commit: nothing reads it; remove it")
    folding, step = Fold(State()), progress("commits", len(numbers))
    for commit in _commits(store, numbers, found, step):
        try:
            folding.add(commit)
        except UnreadableCommit as error:
            found.damage(error.path, f"{error.why}; nothing after it is seen")
            break
        if commit.generation in wanted:
            found.kept[commit.generation] = folding.state()
    found.state = folding.state()


def _commits(store: Store, numbers: list[int], found: _Found, step: Step) -> Iterator[Commit]:
    """Commits in order, up to the first that is missing or unreadable."""
    log = Log(store)

    def read(number: int) -> Commit | UnreadableCommit | None:
        try:
            return log.read(number)
        except UnreadableCommit as error:
            return error

    for place, commit in enumerate(at_once(read, numbers, step), 1):
        if isinstance(commit, UnreadableCommit):
            lost = place == len(numbers) and _is_empty(store, commit.path)
            found.damage(commit.path, LOST if lost else f"{commit.why}; nothing after it is seen")
            return
        if commit is None or commit.generation != place:
            later = len(numbers) - place + 1
            found.damage(log_path(place), f"missing, so {later} commits after it are not seen; restore it")
            return
        yield commit


def _check_checkpoints(store: Store, found: _Found, paths: list[str]) -> None:
    """Those that are still there, as far as the log is sound."""
    for path in paths:
        if not checkpoints.NAME.fullmatch(path):
            found.note(path, "no checkpoint: nothing reads it; remove it")
            continue
        state, truth = read_checkpoint(store, path), found.kept.get(_generation(path))
        if state is None:
            if store.find(path):
                found.note(path, "damaged or of another program's schema: it is passed over; remove it")
        elif state.generation > found.state.generation:
            continue
        elif truth is None or state.head != truth.head:
            found.note(path, "not of this log: it is passed over; remove it")
        elif state != truth:
            found.damage(path, "not what the log adds up to; remove it")


def _measure(store: Store, entries: list[Entry], progress: Progress) -> dict[str, Blob]:
    """What each blob's content is, by its name's digest."""
    named = [match["sha256"] for entry in entries if (match := blobs.NAME.fullmatch(entry.path))]
    step = progress("files", len(named))
    measured = zip(named, at_once(Blobs(store).measure, named, step), strict=True)
    return {digest: content for digest, content in measured if content is not None}


def _check_versions(
    store: Store, found: _Found, contents: Mapping[str, Blob], progress: Progress
) -> Mapping[str, _Use]:
    """Every manifest against the log, and whether its files are there. Returns what each digest in use is for."""
    entries = [(task, entry) for task in found.state.tasks.values() for entry in task.versions.values()]
    step = progress("versions", len(entries))
    manifests = at_once(lambda pair: _manifest(store, pair[1], contents), entries, step)
    used: dict[str, _Use] = {}
    for (task, entry), manifest in zip(entries, manifests, strict=True):
        path, name = blob_path(entry.manifest_sha256), f"{task.name}:{entry.version}"
        used[entry.manifest_sha256] = _Use(f"the manifest of {name}")
        if isinstance(manifest, str):
            found.damage(path, f"the manifest of {name}: {manifest}; {AGAIN}")
            continue
        if fault := _mismatch(task, entry, manifest):
            found.damage(path, f"the manifest of {name} is not what the log says: {fault}")
        for file, blob in manifest.files.items():
            used[blob.sha256] = _Use(f"{file} of {name}", blob.size)
            if blob.sha256 not in contents and not entry.retired:
                found.damage(blob_path(blob.sha256), f"{file} of {name}: missing; {AGAIN}")
    return used


def _manifest(store: Store, entry: VersionState, contents: Mapping[str, Blob]) -> Manifest | str:
    """A version's manifest, or why it cannot be had."""
    if entry.manifest_sha256 not in contents:
        return "missing"
    try:
        data = Blobs(store).read(entry.manifest_sha256, MAX_MANIFEST_BYTES)
        return parse_manifest(data, "it")
    except (CorruptBlob, ArtifactError) as error:
        return error.why


def _mismatch(task: TaskState, entry: VersionState, manifest: Manifest) -> str | None:
    said = {"task": task.name, "kind": entry.kind, "backbone": entry.backbone, "run": entry.run_id}
    has = {
        "task": manifest.task,
        "kind": manifest.spec.kind,
        "backbone": manifest.backbone.fingerprint,
        "run": manifest.run_id,
    }
    return next((f"its {name} is {has[name]!r}, not {said[name]!r}" for name in said if said[name] != has[name]), None)


def _check_blobs(entries: list[Entry], contents: Mapping[str, Blob], used: Mapping[str, _Use], found: _Found) -> None:
    """Contents against names and sizes. Manifests in use were judged already."""
    orphans = 0
    for entry in entries:
        match = blobs.NAME.fullmatch(entry.path)
        if match is None:
            found.note(entry.path, "no blob: nothing reads it; remove it")
        elif (use := used.get(match["sha256"])) is None:
            orphans += 1
        elif use.size is not None and contents.get(match["sha256"]) not in (
            None,
            Blob(**match.groupdict(), size=use.size),
        ):
            found.damage(entry.path, f"{use.what}: its content is not what its name says; {AGAIN}")
    if orphans:
        found.note(
            blobs.FOLDER, f"no readable version refers to {orphans} files; sidecast registry gc removes old ones"
        )


def _is_empty(store: Store, path: str) -> bool:
    entry = store.find(path)
    return entry is not None and entry.size == 0


def _generation(path: str) -> int:
    match = checkpoints.NAME.fullmatch(path)
    return int(match["generation"]) if match else 0
