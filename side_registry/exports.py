"""What an export is on disk: a folder, or the same folder as one .tar file.

    export.json              which versions, and which alias was where
    blobs/sha256/<digest>    their manifests and files

Knows no registry. Trusts nothing that it reads: names are checked, contents are verified.
"""

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from side_registry import blobs
from side_registry.blobs import blob_path, is_file_of
from side_registry.documents import SCHEMA_VERSION, Document, explain, newer_schema, replacing
from side_registry.errors import ArtifactError
from side_registry.log import AliasName, TaskName, Version
from side_registry.manifest import MAX_MANIFEST_BYTES, Digest, Manifest, parse_manifest

LISTING = "export.json"
MAX_LISTING_BYTES = 64 << 20


class ExportedVersion(Document):
    version: Version
    """Its number where it came from."""
    manifest_sha256: Digest
    published_at: str = ""
    author: str = ""
    message: str = ""


class Export(Document):
    """What an export holds."""

    schema_version: int = SCHEMA_VERSION
    registry: str
    """Id of the registry that it came from."""
    task: TaskName
    versions: tuple[ExportedVersion, ...] = Field(min_length=1)
    """Oldest first."""
    aliases: dict[AliasName, Version] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arriving:
    """A version of an export, complete and verified."""

    version: int
    """Its number where it came from."""
    manifest: Manifest
    data: bytes
    """Of the manifest."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def read_export(folder: Path, source: Path) -> tuple[Export, list[Arriving]]:
    """Read and verify all of an unpacked export; `source` is what errors name.

    Raises:
        ArtifactError: it is no export, incomplete or damaged.
    """
    data = _read(folder / LISTING, MAX_LISTING_BYTES)
    if data is None:
        raise ArtifactError(source, f"it has no {LISTING}; name what sidecast registry export wrote")
    try:
        export = Export.model_validate_json(data)
    except ValidationError as error:
        raise ArtifactError(source, f"{LISTING}: {explain(error)}") from None
    if fault := newer_schema(export.schema_version) or _fault(export):
        raise ArtifactError(source, f"{LISTING}: {fault}")
    return export, [_arriving(folder, source, export.task, each) for each in export.versions]


@contextmanager
def folder_to_write(target: Path) -> Iterator[Path]:
    """A folder for an export; a `.tar` is made of it when the block ends well.

    Raises:
        ArtifactError: something else is at the target.
    """
    if target.suffix == ".tar":
        with tempfile.TemporaryDirectory(prefix="sidecast-export-") as folder:
            yield Path(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _pack(Path(folder), target)
        return
    if target.exists() and not (target / LISTING).is_file() and not _is_empty(target):
        raise ArtifactError(target, "it exists and is no export; name a new folder, or a .tar file")
    target.mkdir(parents=True, exist_ok=True)
    yield target


@contextmanager
def folder_to_read(source: Path) -> Iterator[Path]:
    """The export as a folder.

    Raises:
        ArtifactError: there is none.
    """
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="sidecast-import-") as folder:
        _unpack(source, Path(folder))
        yield Path(folder)


def _arriving(folder: Path, source: Path, task: str, version: "ExportedVersion") -> Arriving:
    name = f"{task}:{version.version}"
    data = _read(folder / blob_path(version.manifest_sha256), MAX_MANIFEST_BYTES)
    if data is None or hashlib.sha256(data).hexdigest() != version.manifest_sha256:
        raise ArtifactError(source, f"the manifest of {name} is missing or damaged; export it again")
    manifest = parse_manifest(data, source)
    if manifest.task != task:
        raise ArtifactError(source, f"the manifest of {name} is of task {manifest.task[:80]!r}")
    for file, blob in manifest.files.items():
        if not is_file_of(folder / blob_path(blob.sha256), blob):
            raise ArtifactError(source, f"{file} of {name} is missing or damaged; export it again")
    return Arriving(version.version, manifest, data)


def _fault(export: Export) -> str | None:
    numbers = [each.version for each in export.versions]
    if numbers != sorted(set(numbers)):
        return "its versions must be different, oldest first"
    if lost := [alias for alias, version in export.aliases.items() if version not in numbers]:
        return f"its alias {lost[0]} points to a version that it does not hold"
    return None


def _pack(folder: Path, target: Path) -> None:
    """A .tar file that is there whole or not at all; the listing first."""
    paths = [folder / LISTING, *sorted((folder / blobs.FOLDER).rglob("*"))]
    with replacing(target) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for path in paths:
            if path.is_file():
                archive.add(path, path.relative_to(folder).as_posix())


def _unpack(source: Path, folder: Path) -> None:
    """Only files with the names that an export has, wherever the archive would rather put them."""
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isfile() and (member.name == LISTING or blobs.NAME.fullmatch(member.name)):
                    path, content = folder / member.name, archive.extractfile(member)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as file:
                        shutil.copyfileobj(content, file)  # type: ignore[arg-type]
    except FileNotFoundError:
        raise ArtifactError(source, "there is no such folder or file") from None
    except (tarfile.TarError, EOFError) as error:
        raise ArtifactError(source, f"it is no export: {error}") from None
    except OSError as error:
        raise ArtifactError(source, str(error.strerror or error)) from None


def _read(path: Path, limit: int) -> bytes | None:
    """None when it is not there, or larger than what it should be."""
    if not path.is_file() or path.stat().st_size > limit:
        return None
    return path.read_bytes()


def _is_empty(target: Path) -> bool:
    return target.is_dir() and not any(target.iterdir())
