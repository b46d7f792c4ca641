"""A registry read and checked whole: the log, manifests, files, checkpoints, and objects that do not belong there.

Changes nothing. A finding is damage, which harms readers now or later, or a note. It may run while others publish:
commits after it read the log are not judged.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from side_registry import blobs, checkpoints
from side_registry.blobs import Blobs, blob_path, digest_in
from side_registry.checkpoints import read_checkpoint
from side_registry.errors import ArtifactError, CorruptBlob, UnreadableCommit
from side_registry.log import NAME, Commit, Log, log_path
from side_registry.maintenance.gc import TRASH
from side_registry.manifest import Blob, Manifest
from side_registry.marker import find_marker
from side_registry.state import Fold, State, TaskState, VersionState
from side_registry.store import Entry, Progress, Step, Store, no_progress, parallel_map

AGAIN = "publish its run again to restore it"
LOST = "empty, and the last: stop every server and publisher that uses this registry, then remove it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, or does not belong."""

    level: Literal["damage", "note"]
    path: str
    """Of the object."""
    what: str
    """What is wrong, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a check of a whole registry counted and found."""

    generation: int
    """The log is sound up to here."""
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
        """Whether nothing is damaged."""
        return all(finding.level == "note" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class _Use:
    """What a blob is needed for."""

    what: str
    size: int | None = None
    """Bytes, by the manifest that names it; None for a manifest."""


@dataclass(slots=True)
class _Report:
    """The state by the log, and the findings so far."""

    state: State = field(default_factory=State)
    kept: dict[int, State] = field(default_factory=dict)
    """The states that checkpoints should hold, by generation."""
    findings: list[Finding] = field(default_factory=list)

    def damage(self, path: str, what: str) -> None:
        self.findings.append(Finding(level="damage", path=path, what=what))

    def note(self, path: str, what: str) -> None:
        self.findings.append(Finding(level="note", path=path, what=what))


def verify(store: Store, progress: Progress = no_progress) -> Verified:
    """Read a whole registry and check it.

    Raises:
        RegistryNotFound, NotARegistry, StoreFailed.
    """
    find_marker(store, create=False)
    report = _Report()
    checkpoint_paths = store.list("checkpoints")  # before the log, which then goes at least as far
    _check_log(store, report, {_generation(path) for path in checkpoint_paths}, progress)
    _check_checkpoints(store, report, checkpoint_paths)
    entries = store.entries(blobs.FOLDER)  # after the log: all blobs that it names were written before
    contents = _measure(store, entries, progress)
    used = _check_versions(store, report, contents, progress)
    _check_blobs(entries, contents, used, report)
    if left := store.list(TRASH):
        report.note(TRASH, f"{len(left)} files, left by a gc that was stopped; the next gc --delete sees to them")
    return Verified(
        generation=report.state.generation,
        tasks=len(report.state.tasks),
        versions=sum(len(task.versions) for task in report.state.tasks.values()),
        blobs=len(contents),
        size=sum(entry.size for entry in entries),
        findings=tuple(sorted(report.findings, key=lambda finding: finding.level != "damage")),
    )


def _check_log(store: Store, report: _Report, wanted: set[int], progress: Progress) -> None:
    """Fold all commits before the first bad one, and keep the states of wanted generations."""
    numbers: list[int] = []
    for path in store.list("log"):
        if match := NAME.fullmatch(path):
            numbers.append(int(match["generation"]))
        else:
            report.note(path, "no commit: nothing reads it; remove it")
    folding = Fold(State())
    for commit in _commits(store, numbers, report, progress("commits", len(numbers))):
        try:
            folding.add(commit)
        except UnreadableCommit as error:
            report.damage(error.path, f"{error.why}; nothing after it is seen")
            break
        if commit.generation in wanted:
            report.kept[commit.generation] = folding.state()
    report.state = folding.state()


def _commits(store: Store, numbers: list[int], report: _Report, step: Step) -> Iterator[Commit]:
    """Commits in order, up to the first that is missing or unreadable."""
    log = Log(store)

    def read(number: int) -> Commit | UnreadableCommit | None:
        try:
            return log.read(number)
        except UnreadableCommit as error:
            return error

    for generation, commit in enumerate(parallel_map(read, numbers, step), 1):
        if isinstance(commit, UnreadableCommit):
            lost = generation == len(numbers) and _is_empty(store, commit.path)
            report.damage(commit.path, LOST if lost else f"{commit.why}; nothing after it is seen")
            return
        if commit is None or commit.generation != generation:
            if isinstance(special := read(generation), UnreadableCommit):  # a listing leaves out what is no file
                report.damage(special.path, f"{special.why}; nothing after it is seen")
                return
            later = len(numbers) - generation + 1
            report.damage(log_path(generation), f"missing, so {later} commits after it are not seen; restore it")
            return
        yield commit
    if isinstance(special := read(len(numbers) + 1), UnreadableCommit):
        report.damage(special.path, f"{special.why}; no commit can be written until then")


def _check_checkpoints(store: Store, report: _Report, paths: list[str]) -> None:
    """Check the checkpoints that still exist, as far as the log is sound."""
    for path in paths:
        if not checkpoints.NAME.fullmatch(path):
            report.note(path, "no checkpoint: nothing reads it; remove it")
            continue
        state = read_checkpoint(store, path)
        truth = report.kept.get(_generation(path))
        if state is None:
            if store.find(path):
                report.note(path, "damaged or of another program's schema: it is passed over; remove it")
        elif state.generation > report.state.generation:
            continue
        elif truth is None or state.head != truth.head:
            report.note(path, "not of this log: it is passed over; remove it")
        elif state != truth:
            report.damage(path, "not what the log adds up to; remove it")


def _measure(store: Store, entries: list[Entry], progress: Progress) -> dict[str, Blob]:
    """Digest and size of the content of each blob, by the digest in its name."""
    digests = [digest for entry in entries if (digest := digest_in(entry.path))]
    step = progress("files", len(digests))
    measured = zip(digests, parallel_map(Blobs(store).measure, digests, step), strict=True)
    return {digest: content for digest, content in measured if content is not None}


def _check_versions(
    store: Store, report: _Report, contents: Mapping[str, Blob], progress: Progress
) -> Mapping[str, _Use]:
    """Compare every manifest with the log, and check that its files exist. Returns the use of each digest."""
    entries = [(task, entry) for task in report.state.tasks.values() for entry in task.versions.values()]
    step = progress("versions", len(entries))
    manifests = parallel_map(lambda pair: _manifest(store, pair[1], contents), entries, step)
    used: dict[str, _Use] = {}
    for (task, entry), manifest in zip(entries, manifests, strict=True):
        path, name = blob_path(entry.manifest_sha256), f"{task.name}:{entry.version}"
        used[entry.manifest_sha256] = _Use(f"the manifest of {name}")
        if isinstance(manifest, str):
            report.damage(path, f"the manifest of {name}: {manifest}; {AGAIN}")
            continue
        if fault := _mismatch(task, entry, manifest):
            report.damage(path, f"the manifest of {name} is not what the log says: {fault}")
        for file, blob in manifest.files.items():
            used[blob.sha256] = _Use(f"{file} of {name}", blob.size)
            if blob.sha256 not in contents and not entry.retired:
                report.damage(blob_path(blob.sha256), f"{file} of {name}: missing; {AGAIN}")
    return used


def _manifest(store: Store, entry: VersionState, contents: Mapping[str, Blob]) -> Manifest | str:
    """A version's manifest, or why it cannot be read."""
    if entry.manifest_sha256 not in contents:
        return "missing"
    try:
        return Blobs(store).artifact(entry.manifest_sha256).manifest
    except (CorruptBlob, ArtifactError) as error:
        return error.why


def _mismatch(task: TaskState, entry: VersionState, manifest: Manifest) -> str | None:
    logged = {"task": task.name, "kind": entry.kind, "backbone": entry.backbone, "run": entry.run_id}
    actual = {
        "task": manifest.task,
        "kind": manifest.spec.kind,
        "backbone": manifest.backbone.fingerprint,
        "run": manifest.run_id,
    }
    for name, value in actual.items():
        if value != logged[name]:
            return f"its {name} is {value!r}, not {logged[name]!r}"
    return None


def _check_blobs(entries: list[Entry], contents: Mapping[str, Blob], used: Mapping[str, _Use], report: _Report) -> None:
    """Compare contents with names and sizes. Manifests in use were judged already."""
    orphans = 0
    for entry in entries:
        digest = digest_in(entry.path)
        if digest is None:
            report.note(entry.path, "no blob: nothing reads it; remove it")
        elif (use := used.get(digest)) is None:
            orphans += 1
        elif use.size is not None and contents.get(digest) not in (None, Blob(sha256=digest, size=use.size)):
            report.damage(entry.path, f"{use.what}: its content is not what its name says; {AGAIN}")
    if orphans:
        report.note(
            blobs.FOLDER, f"no readable version refers to {orphans} files; sidecast registry gc removes old ones"
        )


def _is_empty(store: Store, path: str) -> bool:
    entry = store.find(path)
    return entry is not None and entry.size == 0


def _generation(path: str) -> int:
    match = checkpoints.NAME.fullmatch(path)
    return int(match["generation"]) if match else 0
