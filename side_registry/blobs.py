"""Content-addressed files: `blobs/sha256/<digest>`, immutable, verified whenever they are read."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from side_registry.documents import replacing
from side_registry.errors import CorruptBlob
from side_registry.manifest import Blob
from side_registry.store import Store, TooLarge

FOLDER = "blobs"
NAME = re.compile(r"blobs/sha256/(?P<sha256>[0-9a-f]{64})")


class Blobs:
    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, data: bytes) -> str:
        """Store bytes. Returns the digest.

        What is there is written again: that mends what is damaged, and makes what no version refers to yet young, so
        that no collection takes it before the commit.
        """
        digest = hashlib.sha256(data).hexdigest()
        self._store.overwrite(blob_path(digest), data)
        return digest

    def has(self, digests: Iterable[str]) -> bool:
        """All of them are there, sound or not."""
        return all(self._store.find(blob_path(digest)) for digest in digests)

    def read(self, digest: str, limit: int) -> bytes:
        """Raises CorruptBlob."""
        try:
            data = self._store.read(blob_path(digest), limit)
        except TooLarge as error:
            raise CorruptBlob(digest, str(error)) from None
        if data is None:
            raise CorruptBlob(digest, "it is missing")
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptBlob(digest, "its content does not match its name")
        return data

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
        """The digest and size that its content has; None when it is missing."""
        chunks = self._store.stream(blob_path(digest))
        if chunks is None:
            return None
        found, size = hashlib.sha256(), 0
        for chunk in chunks:
            found.update(chunk)
            size += len(chunk)
        return Blob(sha256=found.hexdigest(), size=size)

    def _verified(self, blob: Blob) -> Iterator[bytes]:
        """The blob's pieces. It raises at the first byte too many, or at the end."""
        chunks = self._store.stream(blob_path(blob.sha256))
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
    return f"{FOLDER}/sha256/{digest}"


def is_file_of(path: Path, blob: Blob) -> bool:
    """The file holds the blob's content."""
    if not path.is_file() or path.stat().st_size != blob.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256
