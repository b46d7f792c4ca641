"""Any object store as a few verbs: read, put if absent, overwrite, move, list. And how an address becomes one.

The log needs put-if-absent alone, which local folders and S3 both have; local folders have no compare-and-swap.
Knows paths and bytes, not what they mean. Every failure is a StoreFailed, after a few seconds of retries.
"""

import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import HTTPStore, LocalStore, from_url

from side_registry.errors import NotARegistry, RegistryNotFound, StoreFailed
from side_registry.time_limit import TimeLimit

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK_BYTES = 4 << 20
WHOLE_BYTES = 16 << 20
"""Largest object that is read at once where it may come in chunks."""

DRAFT = re.compile(r"#\d+$")
"""End of the name that obstore gives a file in a local folder until all of it is written."""

KNOWN = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "https", "memory")
ADDRESSES = "s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH or a folder"

RETRY: "RetryConfig" = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
"""For requests that a remote store does not answer, or answers with 5xx. Then the caller gets StoreFailed."""


ANSWER_S = 60.0
"""Longest that a remote store may take for one request, with its retries: after that the caller gets StoreFailed."""
FOLDER_ANSWER_S = 30.0
"""The same for a folder, which may be on a network file system."""
SLOWEST = 1 << 20
"""Bytes in a second. An object's size divided by this is added to the time that its transfer may take."""


class BadObject(ValueError):
    """An object cannot be read, whatever its content; the reader turns this into an error of its own."""


class TooLarge(BadObject):
    """An object has more bytes than the reader allows."""


class NotAFile(BadObject):
    """At an object's place in a folder is something else: a folder, a pipe, a link that leads nowhere."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object, without its content."""

    path: str
    size: int
    """Bytes."""
    modified: datetime
    """By the store's clock."""


class Store:
    """Objects below one address. Safe to use from many threads. Every call may raise StoreFailed.

    No call hangs: one that gets no answer within `answer_s` seconds raises StoreFailed.
    """

    def __init__(self, url: str, objects: "ObjectStore", folder: Path | None = None) -> None:
        """Use `open`; `folder` is that of a local store."""
        self.url = url
        self.answer_s = ANSWER_S if folder is None else FOLDER_ANSWER_S
        self._objects = objects
        self._folder = folder
        self._limit = TimeLimit()

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

        def open_folder() -> LocalStore:
            if not folder.exists() and not create:
                raise RegistryNotFound(str(folder))
            if folder.exists() and not folder.is_dir():
                raise NotARegistry(str(folder), "it is a file")
            return LocalStore(prefix=folder, mkdir=create)

        with _failures(str(folder), "."):
            return cls(str(folder), TimeLimit().call(open_folder, FOLDER_ANSWER_S), folder)

    def read(self, path: str, limit: int) -> bytes | None:
        """All of an object; None when there is none.

        Raises:
            TooLarge: it has more than `limit` bytes.
            NotAFile: a local folder has something else at this place.
        """

        def get() -> "tuple[obstore.GetResult, bytes | None] | None":
            """The object, with its bytes where they are few: most objects are commits."""
            result = self._get(path)
            if result is None:
                return None
            return result, bytes(result.bytes()) if result.meta["size"] <= min(limit, CHUNK_BYTES) else None

        with _failures(self.url, path):
            found = self._ask(get)
            if found is None:
                return None
            result, data = found
            size = result.meta["size"]
            if size > limit:
                raise TooLarge(f"it has {size} bytes, at most {limit} are expected")
            return self._ask(lambda: bytes(result.bytes()), size) if data is None else data

    def read_run(self, paths: Sequence[str], limit: int) -> "list[bytes]":
        """The objects at these paths, up to the first that is not there or that `read` would refuse."""

        def get() -> "list[bytes]":
            run = []
            for path in paths:
                try:
                    result = self._get(path)
                except NotAFile:
                    break
                if result is None or result.meta["size"] > limit:
                    break
                run.append(bytes(result.bytes()))
            return run

        with _failures(self.url, paths[0]):
            return self._ask(get)

    def stream(self, path: str) -> Iterator[bytes] | None:
        """An object in chunks of about CHUNK_BYTES, or whole if it has at most WHOLE_BYTES; None when there is none.

        Raises:
            NotAFile: a local folder has something else at this place.
        """
        with _failures(self.url, path):
            result = self._ask(lambda: self._get(path))
            if result is None:
                return None
            size = result.meta["size"]
            if size <= WHOLE_BYTES:  # obstore's stream takes 7 ms for 1 MB of a local folder, all bytes at once 1 ms
                return iter([self._ask(lambda: bytes(result.bytes()), size)])
        return self._chunks(path, result.stream(min_chunk_size=CHUNK_BYTES))

    def find(self, path: str) -> Entry | None:
        """Size and time of an object, without reading it; None when there is none, or something that is no file."""

        def find() -> Entry | None:
            try:
                self._refuse_special(path)
                return _entry(obstore.head(self._objects, path))
            except (FileNotFoundError, NotAFile):
                return None

        with _failures(self.url, path):
            return self._ask(find)

    def put_new(self, path: str, data: bytes) -> bool:
        """Write an object unless it exists, all or nothing. Of many writers that race, one gets True."""
        with _failures(self.url, path):
            try:
                self._ask(lambda: obstore.put(self._objects, path, data, mode="create"), len(data))
            except AlreadyExistsError:
                return False
            return True

    def overwrite(self, path: str, data: bytes) -> None:
        """Write an object, all or nothing, whatever was there."""
        with _failures(self.url, path):
            self._ask(lambda: obstore.put(self._objects, path, data), len(data))

    def move(self, path: str, target: str) -> bool:
        """Move an object, over any that is at `target`; False when it does not exist. Killed halfway, both exist."""
        with _failures(self.url, path):
            try:
                self._ask(lambda: obstore.rename(self._objects, path, target))
            except FileNotFoundError:
                return False
            return True

    def remove(self, path: str) -> None:
        """Remove an object, or a draft (see `drafts`), if it exists."""
        with _failures(self.url, path), suppress(FileNotFoundError):
            if self._folder and DRAFT.search(path):
                self._ask((self._folder / path).unlink)
            else:
                self._ask(lambda: obstore.delete(self._objects, path))

    def list(self, prefix: str) -> list[str]:
        """Paths below a prefix, sorted."""
        return [entry.path for entry in self.entries(prefix)]

    def entries(self, prefix: str) -> "list[Entry]":
        """The objects below a prefix, sorted by path."""
        with _failures(self.url, prefix):
            entries = [_entry(meta) for page in self._pages(prefix) for meta in page]
        return sorted(entries, key=lambda entry: entry.path)

    def drafts(self) -> "list[Entry]":
        """Half-written files that killed writers left in a local folder. They are no objects: no reader sees them."""
        if self._folder is None:
            return []
        with _failures(self.url, "."):
            drafts = [path for path in self._folder.rglob("*#*") if DRAFT.search(path.name) and path.is_file()]
            return [entry for path in sorted(drafts) if (entry := _draft(path, self._folder))]

    def is_empty(self) -> bool:
        """Whether there is no object at all."""
        with _failures(self.url, "."):
            return next((False for page in self._pages() if page), True)

    def _pages(self, prefix: str | None = None) -> Iterator[Sequence["obstore.ObjectMeta"]]:
        """The objects below a prefix, some at a time."""
        pages = self._ask(lambda: iter(obstore.list(self._objects, prefix)))
        while (page := self._ask(lambda: next(pages, None))) is not None:
            yield page

    def _chunks(self, path: str, result: "obstore.BytesStream") -> Iterator[bytes]:
        chunks = iter(result)
        with _failures(self.url, path):
            while (chunk := self._ask(lambda: next(chunks, None), CHUNK_BYTES)) is not None:
                yield bytes(chunk)

    def _get(self, path: str) -> "obstore.GetResult | None":
        self._refuse_special(path)
        try:
            return obstore.get(self._objects, path)
        except FileNotFoundError:
            self._refuse_special(path)  # a link that leads nowhere
            return None

    def _refuse_special(self, path: str) -> None:
        """Raises NotAFile: to open a pipe would wait for ever; a link that leads nowhere cannot be written over."""
        if self._folder is None:
            return
        place = self._folder / path
        try:
            mode = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if place.is_symlink():
                raise NotAFile(
                    f"it is a symbolic link to {place.readlink()}, which does not exist; remove it"
                ) from None
            return
        if not stat.S_ISREG(mode):
            raise NotAFile(f"it is a {'folder' if stat.S_ISDIR(mode) else 'pipe or device'}, not a file; remove it")

    def _ask(self, request: Callable[[], Result], size: int = 0) -> Result:
        """What the request returns or raises; OSError when it takes too long for `size` bytes."""
        return self._limit.call(request, self.answer_s + size / SLOWEST)


def _entry(meta: "obstore.ObjectMeta") -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"])


def _draft(path: Path, folder: Path) -> Entry | None:
    """None when its writer has finished it meanwhile."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return Entry(path.relative_to(folder).as_posix(), stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


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
    """Path of a file URL. A host is no part of it, so file://registry is refused."""
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


NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
CODE = re.compile(r"<Code>(\w+)</Code>")
DENIED = re.compile(r"Server returned non-2xx status code: (401|403)\b")
METADATA = re.compile(r"169\.254\.169\.254|/latest/api/token|metadata\.google|computeMetadata|/metadata/identity")
ADDRESS = re.compile(r"Error performing \w+ (?P<scheme>https?)://(?P<host>[^/\s]+)")
UNREACHABLE = ("error sending request", "timed out", "TimedOut", "kind: Connect", "kind: Timeout")


def why(error: BaseException) -> str:
    """One clause: what is wrong, and what to do where that is known."""
    text = str(error)
    address = ADDRESS.search(text)
    if METADATA.search(text):
        return "no credentials were found; set them in the environment, docs/registry/registry.md says which"
    if "Account must be specified" in text:
        return "its account is not known; set AZURE_STORAGE_ACCOUNT_NAME"
    if any(code in text for code in NO_BUCKET):
        return "there is no such bucket or container; make it first"
    if denied := DENIED.search(text):
        code = CODE.search(text)
        return f"access is denied ({code[1] if code else denied[1]})"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"access is denied ({first_line(error)})"
    if address and address["scheme"] == "http" and "builder error" in text:
        return f"{address['host']} is asked over plain http; set AWS_ALLOW_HTTP=true where that is meant"
    if address and any(sign in text for sign in UNREACHABLE):
        return f"{address['host']} cannot be reached"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """First line of the error's text: obstore adds a dump of the source after it."""
    return (str(error) or type(error).__name__).splitlines()[0]


THREADS = 16

Step = Callable[[], None]
"""Called after each item of a long piece of work."""
Progress = Callable[[str, int], Step]
"""Called before a long piece of work, with the name and the number of its items; returns what to call after each."""


def no_progress(what: str, count: int) -> Step:
    """The Progress of a caller that shows none."""
    return lambda: None


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], step: Step, max_threads: int | None = None
) -> Iterator[Result]:
    """Results in the order of `items`, from at most THREADS (or `max_threads`) threads. The first failure ends it."""
    with ThreadPoolExecutor(min(max_threads or THREADS, THREADS), thread_name_prefix="store") as threads:
        for result in threads.map(function, items):
            step()
            yield result
