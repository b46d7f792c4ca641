"""Folders that are either complete or absent: built under a temporary name, sealed with digests, then renamed.

A folder is used again only if every file still has the digest in its seal, and its recipe is the one in the code;
otherwise it is made again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

SEAL = "sealed.json"
STALE_S = 24 * 3600
"""A temporary folder this old, in seconds, belongs to a run that was killed."""


class DemoError(Exception):
    """The demo cannot continue; says what happened and what to do, in one sentence."""

    reason = "DEMO_FAILED"

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.what = what
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.what}; {self.advice}"


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def intact(folder: Path, recipe: str) -> bool:
    """Return whether `folder` was built completely by this recipe and has not changed since."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return seal["recipe"] == recipe and all(sha256_of(folder / name) == at for name, at in seal["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def building(folder: Path, recipe: str) -> Iterator[Path]:
    """Provide a temporary folder to fill. It becomes `folder` if the block succeeds, and is removed if it fails.

    Raises:
        DemoError: the disk cannot be written.
    """
    with disk_errors(folder.parent), temporary_sibling(folder) as staging:
        staging.mkdir(parents=True)
        yield staging
        files = {path.relative_to(staging).as_posix(): sha256_of(path) for path in _files(staging)}
        seal = {"recipe": recipe, "files": files}
        (staging / SEAL).write_text(json.dumps(seal, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            if intact(folder, recipe):
                return  # another run finished first
            with temporary_sibling(folder) as old:
                folder.replace(old)
        staging.replace(folder)


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """Provide a unique path in the same folder as `path`; what exists there at the end is removed."""
    for stale in path.parent.glob(".partial-*"):
        if time.time() - stale.stat().st_mtime > STALE_S:
            shutil.rmtree(stale, ignore_errors=True)
    sibling = path.parent / f".partial-{uuid4().hex}"
    try:
        yield sibling
    finally:
        shutil.rmtree(sibling, ignore_errors=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Convert an OSError to a DemoError."""
    try:
        yield
    except OSError as error:
        what = f"cannot write {error.filename or folder}: {error.strerror or error}"
        raise DemoError(what, "free some space, or set SIDECAST_CACHE to a folder you may write") from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
