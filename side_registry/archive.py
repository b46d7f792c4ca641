"""The .tar file of an export: packed whole, and unpacked file by file on demand.

Trusts no archive. Reads only plain ones, without compression and without holes, so no file that comes out of one takes
more space than the archive itself.
"""

import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from side_registry.errors import ArtifactError


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
