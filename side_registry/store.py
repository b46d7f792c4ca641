"""Any object store as four verbs: read, put if absent, overwrite, list. And how an address becomes one.

A local folder and S3 both honour put-if-absent, which is all the log needs; compare-and-swap local folders do not have.
Knows paths and bytes, not what they mean. Failures of the store come out as StoreFailed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from side_registry.errors import NotARegistry, RegistryNotFound, StoreFailed

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK_BYTES = 4 << 20


class TooLarge(ValueError):
    """An object has more bytes than its kind may have; whoever reads it says what that means."""


class Store:
    """Objects below one address. Safe to use from many threads."""

    def __init__(self, url: str, objects: "ObjectStore") -> None:
        self.url = url
        self._objects = objects

    @classmethod
    def open(cls, url: str | Path, *, create: bool = False) -> "Store":
        """A local path (`~` expands), `file://`, `memory://`, or what obstore knows: `s3://`, `gs://`, `az://`.

        Raises:
            RegistryNotFound: a local folder that does not exist, unless `create`.
            NotARegistry: no address of a store.
        """
        text = str(url)
        if isinstance(url, str) and "://" in text and not text.startswith("file://"):
            return cls(text, _remote(text))
        folder = _local_folder(text)
        with _failures(str(folder), "."):
            if not folder.exists() and not create:
                raise RegistryNotFound(str(folder))
            if folder.exists() and not folder.is_dir():
                raise NotARegistry(str(folder), "it is a file")
            return cls(str(folder), LocalStore(prefix=folder, mkdir=create))

    def read(self, path: str, limit: int) -> bytes | None:
        """All of an object; None when there is none.

        Raises:
            TooLarge: it has more than `limit` bytes.
        """
        with _failures(self.url, path):
            try:
                found = obstore.get(self._objects, path)
            except FileNotFoundError:
                return None
            if found.meta["size"] > limit:
                raise TooLarge(f"it has {found.meta['size']} bytes, at most {limit} are expected")
            return bytes(found.bytes())

    def stream(self, path: str) -> Iterator[bytes] | None:
        """An object in pieces; None when there is none."""
        with _failures(self.url, path):
            try:
                chunks = obstore.get(self._objects, path).stream(min_chunk_size=CHUNK_BYTES)
            except FileNotFoundError:
                return None
        return self._chunks(path, chunks)

    def put_new(self, path: str, data: bytes) -> bool:
        """Write an object unless it exists, all or nothing. Of many who try at once, one gets True."""
        with _failures(self.url, path):
            try:
                obstore.put(self._objects, path, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def overwrite(self, path: str, data: bytes) -> None:
        with _failures(self.url, path):
            obstore.put(self._objects, path, data)

    def remove(self, path: str) -> None:
        with _failures(self.url, path):
            obstore.delete(self._objects, path)

    def list(self, prefix: str) -> list[str]:
        """Paths below a prefix, sorted."""
        with _failures(self.url, prefix):
            return sorted(entry["path"] for page in obstore.list(self._objects, prefix) for entry in page)

    def is_empty(self) -> bool:
        with _failures(self.url, "."):
            return next((False for page in obstore.list(self._objects) if page), True)

    def _chunks(self, path: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        with _failures(self.url, path):
            yield from map(bytes, chunks)


def _local_folder(text: str) -> Path:
    if text.startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    if not text.strip() or "\0" in text:
        raise NotARegistry(repr(text), "the address is empty or holds a NUL character")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # no such user
        raise NotARegistry(text, str(error)) from None


def _remote(url: str) -> "ObjectStore":
    try:
        return from_url(url)
    except (BaseError, ValueError) as error:
        raise NotARegistry(url, _first_line(error)) from None


@contextmanager
def _failures(url: str, path: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise StoreFailed(url, path, _first_line(error)) from error


def _first_line(error: Exception) -> str:
    """Without obstore's debug dump of the source."""
    return (str(error) or type(error).__name__).splitlines()[0]
