"""Images in a client's rows, as bytes: bytes are sent unchanged, files are read, PIL's images become PNG files.

A text is never an image: no text is opened as a path or fetched as a URL. Pillow is not imported.
"""

import io
import os
from pathlib import Path
from typing import Any, Protocol

ORIENTATION = 0x0112
"""EXIF's tag: how an image is turned before it is shown."""
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes of PIL's images that PNG keeps without loss."""
AS_RGB = ("CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La", "PA")
"""Modes that are converted first, by Pillow's formulas."""
MAX_FILE_BYTES = 256 * 2**20
"""Most bytes of a file that is read: of a path that is no image, such as a device, no more are in memory."""
COMPRESSION = 1
"""zlib's level: higher ones take many times longer to save a few per cent."""


class PilImage(Protocol):
    """The part of `PIL.Image.Image` that is used."""

    @property
    def mode(self) -> str:
        """How its pixels are stored, such as RGB."""
        ...

    def convert(self, mode: str) -> Any:
        """The image in another mode."""
        ...

    def save(self, fp: Any, format: str, **params: Any) -> None:
        """Write the image as a file."""
        ...

    def getexif(self) -> Any:
        """Its EXIF data by tag."""
        ...


ImageInput = bytes | bytearray | memoryview | os.PathLike[str] | PilImage
"""An image: the bytes of its file (JPEG, PNG or WebP), a path, whose file is read, or a PIL.Image, sent as PNG."""


def is_image(value: object) -> bool:
    """Whether a value of a row is an image. A str is a text."""
    return isinstance(value, bytes | bytearray | memoryview | os.PathLike) or _is_pil(value)


def needs_work(value: object) -> bool:
    """Whether an image must be read or encoded before it can be sent."""
    return is_image(value) and not isinstance(value, bytes | bytearray | memoryview)


def image_bytes(value: Any) -> bytes:
    """The bytes of an image's file. Blocks on the disk.

    Raises:
        ValueError: the file cannot be read, or the image cannot be saved as PNG; the message says why.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return _encoded(value) if _is_pil(value) else _read(value)


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image's file. Blocks on the disk.

    Raises:
        OSError: it cannot be read.
        ValueError: its name is no path, or it has more than MAX_FILE_BYTES bytes.
    """
    with Path(path).expanduser().open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES:,} bytes; give an image file")
    return data


def _is_pil(value: object) -> bool:
    return all(hasattr(value, name) for name in ("mode", "convert", "save", "getexif"))


def _read(path: os.PathLike[str]) -> bytes:
    try:
        return read_image_file(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read: {os.fspath(path)!a}: {getattr(error, 'strerror', None) or error}") from None


def _encoded(image: PilImage) -> bytes:
    if image.mode not in PNG_MODES + AS_RGB:
        raise ValueError(f"is a PIL image of mode {image.mode}, which is not sent; convert it to RGB first")
    exif = image.getexif()
    file = io.BytesIO()
    turned = {"exif": exif} if exif.get(ORIENTATION, 1) != 1 else {}
    picture = image.convert("RGB") if image.mode in AS_RGB else image
    try:
        picture.save(file, format="PNG", compress_level=COMPRESSION, **turned)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be saved as PNG: {error}") from None
    return file.getvalue()
