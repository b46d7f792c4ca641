"""Content-addressed files: `blobs/sha256/<digest>`, immutable, verified whenever they are read.

The one place that reads a published version's manifest and files from a store.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from side_registry.documents import replacing
from side_registry.errors import CorruptBlob
from side_registry.manifest import MANIFEST, MAX_MANIFEST_BYTES, Artifact, Blob, Manifest, parse_manifest
from side_registry.store import BadObject, Store

FOLDER = "blobs"
NAME = re.compile(r"blobs/sha256/(?P<sha256>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """A published version whose manifest was read and verified; its files are still in the store."""

    manifest: Manifest
    manifest_bytes: bytes = field(repr=False)
    """As they are in the store: their digest identifies the version."""
    blobs: "Blobs" = field(repr=False, compare=False)

    @property
    def manifest_sha256(self) -> str:
        """The digest of its manifest, which identifies the version."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    def download(self, folder: str | Path) -> Artifact:
        """Copy the version into a folder, verified, the manifest last. A file that is right already is kept.

        Raises:
            CorruptBlob: a file is damaged or missing; it does not appear in the folder.
            StoreFailed, OSError.
        """
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        for name, blob in self.manifest.files.items():
            self.blobs.fetch(blob, folder / name)
        with replacing(folder / MANIFEST) as file:
            file.write(self.manifest_bytes)
        return Artifact(folder, self.manifest, self.manifest_bytes)


class Blobs:
    """The blobs of one store. Each call blocks on the store and may raise StoreFailed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, data: bytes) -> str:
        """Store bytes. Returns their digest.

        An existing blob is written again. That repairs a damaged one, and makes one that no version refers to young, so
        that no garbage collection removes it before the commit.
        """
        digest = hashlib.sha256(data).hexdigest()
        self._store.overwrite(blob_path(digest), data)
        return digest

    def has(self, digests: Iterable[str]) -> bool:
        """Whether all of them exist, sound or not."""
        return all(self._store.find(blob_path(digest)) for digest in digests)

    def read(self, digest: str, limit: int) -> bytes:
        """All bytes of a blob.

        Raises:
            CorruptBlob: missing, of other content, or larger than `limit` bytes.
        """
        try:
            data = self._store.read(blob_path(digest), limit)
        except BadObject as error:
            raise CorruptBlob(digest, str(error)) from None
        if data is None:
            raise CorruptBlob(digest, "it is missing")
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptBlob(digest, "its content does not match its name")
        return data

    def artifact(self, manifest_sha256: str, name: str | None = None) -> StoredArtifact:
        """Read and parse the manifest with this digest; errors call it `name`, or by its path.

        Raises:
            CorruptBlob: the manifest is missing or damaged.
            ArtifactError: its content is no manifest.
        """
        data = self.read(manifest_sha256, MAX_MANIFEST_BYTES)
        return StoredArtifact(parse_manifest(data, name or blob_path(manifest_sha256)), data, self)

    def fetch(self, blob: Blob, target: Path) -> None:
        """Copy a blob into a file, which appears whole or not at all; a file that already is the blob is kept.

        Raises:
            CorruptBlob: missing, of another size, or of other content.
        """
        if is_file_of(target, blob):
            return
        with replacing(target) as file:
            for chunk in self._verified(blob):
                file.write(chunk)

    def measure(self, digest: str) -> Blob | None:
        """Digest and size of the content under this name, whatever they are; None when it is missing."""
        try:
            chunks = self._store.stream(blob_path(digest))
        except BadObject:
            return None
        if chunks is None:
            return None
        content, size = hashlib.sha256(), 0
        for chunk in chunks:
            content.update(chunk)
            size += len(chunk)
        return Blob(sha256=content.hexdigest(), size=size)

    def _verified(self, blob: Blob) -> Iterator[bytes]:
        """The blob's content in chunks. Raises CorruptBlob at the first byte too many, or at the end."""
        try:
            chunks = self._store.stream(blob_path(blob.sha256))
        except BadObject as error:
            raise CorruptBlob(blob.sha256, str(error)) from None
        if chunks is None:
            raise CorruptBlob(blob.sha256, "it is missing")
        digest, size = hashlib.sha256(), 0
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            if size > blob.size:
                raise CorruptBlob(blob.sha256, f"it has more than the {blob.size} bytes it should have")
            yield chunk
        if size < blob.size:
            raise CorruptBlob(blob.sha256, f"it has {size} of its {blob.size} bytes")
        if digest.hexdigest() != blob.sha256:
            raise CorruptBlob(blob.sha256, "its content does not match its name")


def blob_path(digest: str) -> str:
    """Path of a blob in the store."""
    return f"{FOLDER}/sha256/{digest}"


def digest_in(path: str) -> str | None:
    """The digest that a path in the store names; None when it is not the path of a blob."""
    match = NAME.fullmatch(path)
    return match["sha256"] if match else None


def is_file_of(path: Path, blob: Blob) -> bool:
    """Whether the file holds the blob's content."""
    if not path.is_file() or path.stat().st_size != blob.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256
