"""What an export is on disk: a folder, or the same folder as one .tar file.

    export.json              which versions, where the aliases pointed, and the groups that have the task
    blobs/sha256/<digest>    their manifests and files

Knows no registry. Trusts no export: names are checked, contents are verified.
"""

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import Field, ValidationError

from side_registry.blobs import blob_path, is_file_of
from side_registry.documents import SCHEMA_VERSION, Document, explain, newer_schema, replacing
from side_registry.errors import ArtifactError
from side_registry.log import AliasName, TaskName, Version
from side_registry.maintenance.group_transfer import ExportedGroup
from side_registry.manifest import (
    MAX_MANIFEST_BYTES,
    NO_TOKENIZER,
    SIDE_NETWORK,
    Digest,
    Manifest,
    need_side_network,
    parse_manifest,
)
from side_registry.signing.signatures import MAX_SIGNATURES
from side_registry.weights import frame_fault

LISTING = "export.json"
MAX_LISTING_BYTES = 64 << 20

FindFile = Callable[[str, int], Path | None]
"""Path of a file in an export, by name and most bytes; None when there is none, or a larger one."""


class ExportedVersion(Document):
    """One version, as the listing of an export describes it."""

    version: Version
    """Its number in the registry that it came from."""
    manifest_sha256: Digest
    published_at: str = ""
    author: str = ""
    message: str = ""
    signatures: tuple[str, ...] = Field(default=(), max_length=MAX_SIGNATURES, exclude_if=lambda value: not value)
    """As the registry has them, unchecked."""


class Export(Document):
    """The listing of an export, `export.json`: its contents."""

    schema_version: int = SCHEMA_VERSION
    registry: str
    """Id of the registry that it came from."""
    task: TaskName
    versions: tuple[ExportedVersion, ...] = Field(min_length=1)
    """Oldest first."""
    aliases: dict[AliasName, Version] = Field(default_factory=dict)
    groups: tuple[ExportedGroup, ...] = Field(default=(), exclude_if=lambda value: not value)
    """Those that have the task."""


@dataclass(frozen=True, slots=True)
class VerifiedVersion:
    """One version of an export, complete and verified."""

    version: int
    """Its number in the registry that it came from."""
    manifest: Manifest
    manifest_sha256: str
    signatures: tuple[str, ...] = ()


@contextmanager
def open_export(source: Path) -> Iterator[tuple[Path, Export, list[VerifiedVersion]]]:
    """An export, verified, and the folder where its manifests and files are.

    Raises:
        ArtifactError: it is no export, incomplete, damaged or unreadable; or holds what `publish` would refuse.
    """
    with ExitStack() as stack:
        with _failures(source):
            folder, find = _folder_of(_expanded(source), stack)
            export = _read_listing(find, source)
            versions = [_verify_version(find, source, export.task, version) for version in export.versions]
        yield folder, export, versions


@contextmanager
def folder_to_write(target: Path, task: str) -> Iterator[Path]:
    """A folder for an export; for a `.tar` it is packed when the block ends. An older export of the task is replaced.

    Raises:
        ArtifactError: something else is at the target, or it cannot be written.
    """
    target = _expanded(target)
    with _failures(target), ExitStack() as stack:
        _check_free(target, task)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix != ".tar":
            (target / blob_path("")).mkdir(parents=True, exist_ok=True)
            yield target
            return
        file = stack.enter_context(replacing(target))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecast-export-")))
        (folder / blob_path("")).mkdir(parents=True)
        yield folder
        pack(folder, [folder / LISTING, *sorted((folder / blob_path("")).iterdir())], file)


def _folder_of(source: Path, stack: ExitStack) -> tuple[Path, FindFile]:
    """The folder of an export. That of an archive is empty at first: FindFile unpacks each file on demand."""
    if source.is_dir():
        return source, lambda name, limit: _file_within(source / name, limit)
    if not source.is_file():
        raise ArtifactError(source, "there is no such folder or file")
    archive = stack.enter_context(open_archive(source))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecast-import-")))

    def find(name: str, limit: int) -> Path | None:
        if not (folder / name).exists():
            archive.take(name, limit, folder / name)
        return _file_within(folder / name, limit)

    return folder, find


def _file_within(path: Path, limit: int) -> Path | None:
    return path if path.is_file() and path.stat().st_size <= limit else None


def _read_listing(find: FindFile, source: Path) -> Export:
    path = find(LISTING, MAX_LISTING_BYTES)
    if path is None:
        raise ArtifactError(source, f"it has no {LISTING}; name what sidecast registry export wrote")
    try:
        export = Export.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(source, f"{LISTING}: {explain(error)}") from None
    if fault := newer_schema(export.schema_version) or _fault(export):
        raise ArtifactError(source, f"{LISTING}: {fault}")
    return export


def _fault(export: Export) -> str | None:
    numbers = [version.version for version in export.versions]
    if numbers != sorted(set(numbers)):
        return "its versions must be different, oldest first"
    if lost := [alias for alias, version in export.aliases.items() if version not in numbers]:
        return f"its alias {lost[0]} points to a version that it does not hold"
    if len({group.name for group in export.groups}) < len(export.groups):
        return "it has a group twice"
    return None


def _verify_version(find: FindFile, source: Path, task: str, version: ExportedVersion) -> VerifiedVersion:
    name = f"{task}:{version.version}"
    path = find(blob_path(version.manifest_sha256), MAX_MANIFEST_BYTES)
    data = path.read_bytes() if path else b""
    if hashlib.sha256(data).hexdigest() != version.manifest_sha256:
        raise ArtifactError(source, f"the manifest of {name} is missing or damaged; export it again")
    manifest = parse_manifest(data, source)
    if manifest.task != task:
        raise ArtifactError(source, f"the manifest of {name} is of task {manifest.task[:80]!r}")
    need_side_network(manifest, source)
    if manifest.tokenizer_fingerprint == NO_TOKENIZER:
        raise ArtifactError(source, f"{name} was made without a tokenizer; retire it and export the others")
    for file, blob in manifest.files.items():
        path = find(blob_path(blob.sha256), blob.size)
        if path is None or not is_file_of(path, blob):
            raise ArtifactError(source, f"{file} of {name} is missing or damaged; export it again")
        if file == SIDE_NETWORK and (fault := frame_fault(path)):
            raise ArtifactError(source, f"{file} of {name} is no whole safetensors file: {fault}; make the run again")
    return VerifiedVersion(version.version, manifest, version.manifest_sha256, version.signatures)


def _check_free(target: Path, task: str) -> None:
    """Raises ArtifactError when anything but an older export of the task is at the target."""
    packed = target.suffix == ".tar"
    is_folder = target.is_dir()
    if not target.exists() or (is_folder and not packed and not any(target.iterdir())):
        return
    if is_folder == packed:
        raise ArtifactError(
            target, "it is a folder; name a file" if packed else "it is a file; name a .tar, or a folder"
        )
    with ExitStack() as stack:
        try:
            older = _read_listing(_folder_of(target, stack)[1], target)
        except ArtifactError as error:
            raise ArtifactError(
                target, f"it exists and is no export ({error.why}); name a new folder, or a new .tar file"
            ) from None
    if older.task != task:
        raise ArtifactError(target, f"it is an export of task {older.task!r}; name a new folder, or a new .tar file")


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # no such user
        raise ArtifactError(path, str(error)) from None


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(path, str(error.strerror or error)) from error


class Archive:
    """An open .tar file; errors name it by `source`."""

    def __init__(self, archive: tarfile.TarFile, source: Path) -> None:
        """Use `open_archive`."""
        self._archive = archive
        self._source = source
        self._members = {member.name: member for member in map(_checked, archive) if member.isfile()}

    def take(self, name: str, limit: int, target: Path) -> None:
        """Write a file to `target`, if the archive has it with at most `limit` bytes. Raises ArtifactError, OSError."""
        member = self._members.get(name)
        if member is None or member.size > limit:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with _faults(self._source), target.open("wb") as file:
            shutil.copyfileobj(self._archive.extractfile(member), file)  # type: ignore[arg-type]


@contextmanager
def open_archive(source: Path) -> Iterator[Archive]:
    """Open an archive. Raises ArtifactError when it is no plain one; OSError."""
    with _faults(source):
        archive = tarfile.open(source, mode="r:")  # noqa: SIM115
    with archive:
        with _faults(source):
            opened = Archive(archive, source)
        yield opened


def pack(folder: Path, paths: Iterable[Path], file: IO[bytes]) -> None:
    """Make an archive of files below a folder, in this order."""
    with tarfile.open(fileobj=file, mode="w") as archive:
        for path in paths:
            archive.add(path, path.relative_to(folder).as_posix())


def _checked(member: tarfile.TarInfo) -> tarfile.TarInfo:
    if member.size < 0:
        raise tarfile.ReadError(f"{member.name[:80]!r} has {member.size} bytes")
    if member.issparse():
        raise tarfile.ReadError(f"{member.name[:80]!r} is a sparse file; pack it without")
    return member


@contextmanager
def _faults(source: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise ArtifactError(source, f"it is no export, or a compressed or damaged one: {error}") from None
