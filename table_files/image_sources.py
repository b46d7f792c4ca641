"""Where the bytes of images are, by image id: a folder of image files, or a Parquet file.

Bytes are neither decoded nor looked into here.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from table_files.errors import ImageSourceError

ID_COLUMN, IMAGE_COLUMN = "image_id", "image"
ID_SUFFIX = "_id"
"""What follows an image's field in the name of the column of a file of rows that has the ids of images."""
MAX_FILE_BYTES = 256 * 2**20
"""Most bytes of an image's file. Larger ones are not read, so that they are not in memory before they are refused."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Of files that an id names without its suffix; in any case."""


class ImageSource(ABC):
    """Images by id."""

    path: Path
    """The folder or file, for messages."""

    @abstractmethod
    def __contains__(self, image_id: str) -> bool:
        """Return whether there is such an image. Raises ImageSourceError: an id that names two."""

    @abstractmethod
    def read_each(self, image_ids: Iterable[str]) -> Iterator[tuple[str, bytes | ImageSourceError]]:
        """Read images, each once, in the order that is cheapest for the source.

        An image that is missing or does not read has its error in its place; the others are read all the same.
        """

    def read_all(self, image_ids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Read images as `read_each`, up to the first that cannot be read.

        Raises:
            ImageSourceError: no such image, or it does not read.
        """
        for image_id, data in self.read_each(image_ids):
            if isinstance(data, ImageSourceError):
                raise data
            yield image_id, data


def open_images(path: str | Path) -> ImageSource:
    """Open a folder of images, or a Parquet file that has a row for each.

    Raises:
        ImageSourceError: neither, or a Parquet file without the columns.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return ImageFolder(path)
    if not path.exists():
        raise ImageSourceError(path, "there is no such folder or file of images")
    if path.suffix.lower() != ".parquet":
        raise ImageSourceError(path, "images are in a folder, or in a .parquet file")
    return ImageTable(path)


class ImageFolder(ImageSource):
    """Image files in a folder. An id is a file's name with or without its suffix, after sub folders: `train/0`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.resolve()
        self._stems = cache(self._list)

    def __contains__(self, image_id: str) -> bool:
        return self._file(image_id) is not None

    def read_each(self, image_ids: Iterable[str]) -> Iterator[tuple[str, bytes | ImageSourceError]]:
        """See `ImageSource.read_each`: in the order of the ids."""
        for image_id in dict.fromkeys(image_ids):
            yield image_id, self._read(image_id)

    def _read(self, image_id: str) -> bytes | ImageSourceError:
        try:
            file = self._file(image_id)
        except ImageSourceError as error:
            return error
        if file is None:
            return ImageSourceError(self.path, f"has no image {image_id!r}")
        try:
            size = file.stat().st_size
            if size > MAX_FILE_BYTES:
                return ImageSourceError(file, f"has {size:,} bytes, and an image has at most {MAX_FILE_BYTES:,}")
            return file.read_bytes()
        except OSError as error:
            return ImageSourceError(file, error.strerror or str(error))

    def _file(self, image_id: str) -> Path | None:
        """The file of an image, which lies inside the folder, links followed; None if there is none."""
        parts = PurePosixPath(image_id)
        if "\0" in image_id or parts.is_absolute() or ".." in parts.parts or not parts.name:
            return None
        named = self.path / parts
        try:
            files = [named] if named.is_file() else self._stems(named.parent).get(named.name, [])
            if len(files) > 1:
                names = ", ".join(sorted(file.name for file in files))
                raise ImageSourceError(self.path, f"image {image_id!r} is several files, {names}; name one in full")
            return next((file for file in files if file.resolve().is_relative_to(self._root)), None)
        except OSError:  # a name that is too long, or a folder that may not be read
            return None

    def _list(self, folder: Path) -> dict[str, list[Path]]:
        """The image files of one folder, by their names without suffix."""
        stems: dict[str, list[Path]] = defaultdict(list)
        if folder.is_dir():
            for file in folder.iterdir():
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    stems[file.stem].append(file)
        return stems


class ImageTable(ImageSource):
    """A Parquet file with the columns image_id and image: bytes, or the struct with `bytes` that `datasets` writes.

    The ids are kept in memory, and the images of one row group at a time.
    """

    def __init__(self, path: Path) -> None:
        """Read the ids.

        Raises:
            ImageSourceError: no such columns, damaged, or an id that is there twice.
        """
        self.path = path
        self._rows: dict[str, tuple[int, int]] = {}
        self._group: tuple[int, Any] = (-1, None)
        """The row group that was read last, and its images."""
        with self._open() as table:
            names = table.schema_arrow.names
            missing = [name for name in (ID_COLUMN, IMAGE_COLUMN) if name not in names]
            if missing:
                raise ImageSourceError(
                    path, f"has no column {missing[0]!r}; images need {ID_COLUMN} and {IMAGE_COLUMN}"
                )
            for group in range(table.num_row_groups):
                ids = table.read_row_group(group, columns=[ID_COLUMN]).column(ID_COLUMN).to_pylist()
                for index, image_id in enumerate(map(str, ids)):
                    if image_id in self._rows:
                        raise ImageSourceError(path, f"has the image {image_id!r} twice; keep one")
                    self._rows[image_id] = group, index

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    def read_each(self, image_ids: Iterable[str]) -> Iterator[tuple[str, bytes | ImageSourceError]]:
        """See `ImageSource.read_each`: first those that are missing, then in the order of the file."""
        wanted = list(dict.fromkeys(image_ids))
        for image_id in wanted:
            if image_id not in self._rows:
                yield image_id, ImageSourceError(self.path, f"has no image {image_id!r}")
        found = sorted((image_id for image_id in wanted if image_id in self._rows), key=self._rows.__getitem__)
        for group, ids in groupby(found, lambda key: self._rows[key][0]):
            column = self._images_of(group)
            for image_id in ids:
                is_damaged = isinstance(column, ImageSourceError)
                yield image_id, column if is_damaged else self._bytes(column, image_id)

    def _images_of(self, group: int) -> pa.ChunkedArray | ImageSourceError:
        known, column = self._group  # both at once: other threads read too
        if known == group:
            return column
        with self._open() as table:
            try:
                column = table.read_row_group(group, columns=[IMAGE_COLUMN]).column(0)
            except pa.ArrowException as error:
                return _damaged(self.path, error)
        self._group = group, column
        return column

    def _bytes(self, column: pa.ChunkedArray, image_id: str) -> bytes | ImageSourceError:
        data = bytes_of(column[self._rows[image_id][1]].as_py())
        if data is None:
            why = f"image {image_id!r} has no bytes; write the image files themselves into the column {IMAGE_COLUMN}"
            return ImageSourceError(self.path, why)
        return data

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path, page_checksum_verification=True)
        except OSError as error:
            raise ImageSourceError(self.path, error.strerror or str(error)) from None
        except pa.ArrowException as error:
            raise _damaged(self.path, error) from None


def bytes_of(value: Any) -> bytes | None:
    """The bytes of an image in a column's value: bytes, or the dict with `bytes` that `datasets` writes; None: none."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def _damaged(path: Path, error: Exception) -> ImageSourceError:
    return ImageSourceError(path, f"bad Parquet: {str(error).partition(chr(10))[0]}")
