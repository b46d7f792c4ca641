"""What can be wrong with a file of rows, or with images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(eq=False)
class TableFileError(Exception):
    """A file of rows cannot be read, or a row of it. The caller knows the file's path and adds it."""

    line: int | None
    """Line where the row at fault starts, from 1 (Parquet: the row's number); None: the file as a whole."""
    why: str
    """One line: what is wrong, and what to do about it."""

    def __str__(self) -> str:
        return self.why if self.line is None else f"line {self.line}: {self.why}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.line, self.why)


@dataclass(eq=False)
class ImageSourceError(Exception):
    """A folder or file of images cannot be used, or an image of it."""

    path: Path
    """The folder or file."""
    why: str
    """One line: what is wrong, and what to do about it."""

    reason = "IMAGES"
    """Stable name of the error, for programs."""

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.why)
