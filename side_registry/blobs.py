"""Content-addressed files: `blobs/sha256/<digest>`, immutable, verified whenever they are read."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from side_registry.documents import replacing
from side_registry.errors import CorruptBlob
from side_registry.manifest import Blob
from side_registry.store import Store, TooLarge


class Blobs:
    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, data: bytes) -> str:
        """Store bytes unless they are there, and mend what is there but damaged. Returns the digest."""
        digest = hashlib.sha256(data).hexdigest()
        if not self._store.put_new(blob_path(digest), data) and not self._is_sound(digest):
            self._store.overwrite(blob_path(digest), data)
        return digest

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
        if _is_file(target, blob):
            return
        with replacing(target) as file:
            for chunk in self._verified(blob):
                file.write(chunk)

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

    def _is_sound(self, digest: str) -> bool:
        found = hashlib.sha256()
        for chunk in self._store.stream(blob_path(digest)) or ():
            found.update(chunk)
        return found.hexdigest() == digest


def blob_path(digest: str) -> str:
    return f"blobs/sha256/{digest}"


def _is_file(path: Path, blob: Blob) -> bool:
    if not path.is_file() or path.stat().st_size != blob.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256
