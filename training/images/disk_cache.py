"""Features of images on disk, so that the next run or evaluation finds them.

A folder for each encoder and pooling; in it safetensors files, each with the features of many images by the sha256 of
the image's bytes. A file is written under another name and then renamed, so a reader sees whole files alone: a killed
process leaves a part file, which is removed after a day. Processes that write at the same time write files of their
own. Where the disk cannot be written, nothing more is, and the reason is kept.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 32 << 20
"""Features that one file holds, about."""
SUFFIX, PART = ".safetensors", ".part"
STALE_S = 24 * 3600
"""Age in seconds from which a part file belongs to a process that was killed."""


def default_cache_dir() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/sidecast, or ~/.cache/sidecast."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sidecast"


class DiskCache:
    """Features by the sha256 of an image's bytes. Files that do not read are as if they were not there."""

    def __init__(self, folder: Path, key: str) -> None:
        """Find what there is.

        Args:
            folder: the cache folder.
            key: names all that shapes the features, besides the image.
        """
        self.folder = folder.expanduser() / "images" / hashlib.sha256(key.encode()).hexdigest()[:32]
        self.fault: str | None = None
        """Why nothing more is written; None while it is."""
        self._files: dict[str, Any] = {}
        self._new: dict[str, Tensor] = {}
        self._new_bytes = 0
        with suppress(OSError):
            for path in sorted(self.folder.iterdir()):
                self._find(path)

    def __contains__(self, digest: str) -> bool:
        return digest in self._files or digest in self._new

    def read(self, digest: str) -> Tensor | None:
        """Read an image's features, in the dtype in which they were added; None if there are none."""
        if digest in self._new:
            return self._new[digest]
        if digest not in self._files:
            return None
        try:
            return self._files[digest].get_tensor(digest)
        except (SafetensorError, OSError):
            return None

    def add(self, digest: str, features: Tensor) -> None:
        """Add an image's features; they are written when there are enough of them. See `flush`."""
        if self.fault is not None:
            return
        self._new[digest] = features
        self._new_bytes += features.nbytes
        if self._new_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        added = self._new
        self._new = {}
        self._new_bytes = 0
        if not added or self.fault is not None:
            return
        path = self.folder / f"{uuid4().hex}{SUFFIX}"
        part = path.with_suffix(PART)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({digest: features.contiguous() for digest, features in added.items()}, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, SafetensorError) as error:
            self.fault = f"{self.folder} cannot be written ({getattr(error, 'strerror', None) or error})"
            with suppress(OSError):
                part.unlink()
            return
        self._find(path)

    def _find(self, path: Path) -> None:
        if path.suffix == PART:
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()
        elif path.suffix == SUFFIX:
            with suppress(SafetensorError, OSError):
                opened = safe_open(path, framework="pt")
                for digest in opened.keys():  # noqa: SIM118 - not a dict
                    self._files[digest] = opened
