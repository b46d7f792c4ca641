"""Any object store as a few verbs: read, put if absent, overwrite, move, list. And how an address becomes one.

A local folder and S3 both honour put-if-absent, which is all the log needs; compare-and-swap local folders do not have.
Knows paths and bytes, not what they mean. Failures come out as StoreFailed, after a few seconds of retries.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import HTTPStore, LocalStore, from_url

from side_registry.errors import NotARegistry, RegistryNotFound, StoreFailed
from side_registry.store_faults import why

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

CHUNK_BYTES = 4 << 20

DRAFT = re.compile(r"#\d+$")
"""How a local folder names a file that it writes, before it has all of it."""

KNOWN = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "https", "memory")
ADDRESSES = "s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH or a folder"

RETRY: "RetryConfig" = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
"""Of requests that a remote store does not answer, or with 5xx. Whoever called tries again later, or tells the user."""


class TooLarge(ValueError):
    """An object has more bytes than its kind may have; whoever reads it says what that means."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object, without its content."""

    path: str
    size: int
    """Bytes."""
    modified: datetime
    """By the store's clock."""


class Store:
    """Objects below one address. Safe to use from many threads."""

    def __init__(self, url: str, objects: "ObjectStore", folder: Path | None = None) -> None:
        """Use `open`; `folder` is where a local one lies."""
        self.url = url
        self._objects, self._folder = objects, folder

    @classmethod
    def open(cls, url: str | Path, *, create: bool = False) -> "Store":
        """A local path (`~` expands), `file://`, `memory://`, or what obstore knows: `s3://`, `gs://`, `az://`.

        Credentials, region and endpoint of a remote store come from the environment, such as AWS_ACCESS_KEY_ID.

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
            return cls(str(folder), LocalStore(prefix=folder, mkdir=create), folder)

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

    def find(self, path: str) -> Entry | None:
        """What there is to say of an object without reading it; None when there is none."""
        with _failures(self.url, path):
            try:
                return _entry(obstore.head(self._objects, path))
            except FileNotFoundError:
                return None

    def put_new(self, path: str, data: bytes) -> bool:
        """Write an object unless it exists, all or nothing. Of many who try at once, one gets True."""
        with _failures(self.url, path):
            try:
                obstore.put(self._objects, path, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def overwrite(self, path: str, data: bytes) -> None:
        """Write an object, all or nothing, whatever was there."""
        with _failures(self.url, path):
            obstore.put(self._objects, path, data)

    def move(self, path: str, target: str) -> bool:
        """Give an object another path, over what was there; False when there is none. Stopped halfway it has both."""
        with _failures(self.url, path):
            try:
                obstore.rename(self._objects, path, target)
            except FileNotFoundError:
                return False
            return True

    def remove(self, path: str) -> None:
        """Remove an object, or a draft, if it is there."""
        with _failures(self.url, path), suppress(FileNotFoundError):
            if self._folder and DRAFT.search(path):
                (self._folder / path).unlink()
            else:
                obstore.delete(self._objects, path)

    def list(self, prefix: str) -> list[str]:
        """Paths below a prefix, sorted."""
        return [entry.path for entry in self.entries(prefix)]

    def entries(self, prefix: str) -> "list[Entry]":
        """The objects below a prefix, sorted by path."""
        with _failures(self.url, prefix):
            found = [_entry(meta) for page in obstore.list(self._objects, prefix) for meta in page]
        return sorted(found, key=lambda entry: entry.path)

    def drafts(self) -> "list[Entry]":
        """What killed writers left half-written in a local folder. It has no object's path, and no reader sees it."""
        if self._folder is None:
            return []
        with _failures(self.url, "."):
            drafts = [path for path in self._folder.rglob("*#*") if DRAFT.search(path.name) and path.is_file()]
            return [entry for path in sorted(drafts) if (entry := _draft(path, self._folder))]

    def is_empty(self) -> bool:
        with _failures(self.url, "."):
            return next((False for page in obstore.list(self._objects) if page), True)

    def _chunks(self, path: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        with _failures(self.url, path):
            yield from map(bytes, chunks)


def _entry(meta: "obstore.ObjectMeta") -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"])


def _draft(path: Path, folder: Path) -> Entry | None:
    """None when its writer is done with it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return Entry(path.relative_to(folder).as_posix(), found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _local_folder(text: str) -> Path:
    if text.startswith("file://"):
        text = _path_of(text)
    if not text.strip() or "\0" in text:
        raise NotARegistry(repr(text), "the address is empty or holds a NUL character")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # no such user
        raise NotARegistry(text, str(error)) from None


def _path_of(url: str) -> str:
    """Of a file URL. What stands between the slashes is no part of the path: file://registry has none."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or "?" in url or "#" in url or not parts.path:
        raise NotARegistry(url, "a folder's address is file:///ABSOLUTE/PATH, without anything after it, or the path")
    return url2pathname(parts.path)


def _remote(url: str) -> "ObjectStore":
    scheme, host = url.partition("://")[0].lower(), url.partition("://")[2].partition("/")[0]
    if "?" in url or "#" in url or ("@" in host and not scheme.startswith("abfs")):
        raise NotARegistry(f"{scheme}://...", "its address holds credentials or parameters; set them as environment")
    try:
        objects = from_url(url) if scheme == "memory" else from_url(url, retry_config=RETRY)
    except (BaseError, ValueError) as error:
        if scheme in KNOWN and "Unable to recognise URL" not in str(error):
            raise StoreFailed(url, ".", why(error)) from None  # what the environment says does not suffice
        raise NotARegistry(url, f"use {ADDRESSES}") from None
    if isinstance(objects, HTTPStore):
        raise NotARegistry(url, f"a web server keeps no objects, use {ADDRESSES}")
    return objects


@contextmanager
def _failures(url: str, path: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise StoreFailed(url, path, why(error)) from error
