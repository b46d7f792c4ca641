"""Format, size and animation of an image file, read from its header, before any decoder sees the file.

It also bounds a decoder's work: the number of a PNG's chunks, and of a JPEG's segments and scans. Each scan of
a progressive JPEG passes over the whole image, and an empty one takes only a few bytes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vision.errors import ImageError

ImageFormat = Literal["JPEG", "PNG", "WEBP"]
SEND = "send a JPEG, PNG or WebP file"
MAX_CHUNKS = 65_536
"""Of a PNG; encoders write chunks of 8 KiB or more."""
MAX_SEGMENTS = 4096
"""Of a JPEG, scans included; a colour profile and maker's notes take up to about 300."""
MAX_SCANS = 100
"""Of a JPEG; encoders write about ten."""

_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""A JPEG marker, but for stuffed bytes and restarts, which are part of a scan's data."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_IMAGE = 0xD8
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_TEMPORARY = 0x01
_OTHER_FORMATS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"\0\0\1\0": "an icon",
    b"8BPS": "a Photoshop file",
}
_ISO_MEDIA = {b"avif": "an AVIF", b"avis": "an AVIF", b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIF"}
_URL = re.compile(rb"\s*(https?|ftp|file|s3|gs|data):", re.IGNORECASE)
_BASE64 = (b"iVBORw0KGgo", b"/9j/", b"UklGR")
_SAMPLE = 512


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before its pixels."""

    format: ImageFormat
    width: int
    height: int
    """In pixels, as stored: before an EXIF orientation is applied."""
    is_animated: bool = False


def read_header(data: bytes) -> Header:
    """Read the header of a JPEG, PNG or WebP file.

    Raises:
        ImageError: another format, no image at all, or a header that is damaged.
    """
    read = _reader_of(data)
    if read is None:
        raise _not_an_image(data)
    header = read(data)
    if header.width < 1 or header.height < 1:
        raise damaged(header.format, f"its size is {header.width} x {header.height}")
    return header


def damaged(image_format: str, why: str) -> ImageError:
    """Return the error for a file that begins as an image and cannot be decoded."""
    return ImageError("damaged", f"a damaged or truncated {image_format} file: {why}", "save or send it again")


def _reader_of(data: bytes) -> Callable[[bytes], Header] | None:
    if data.startswith(_PNG):
        return _read_png
    if data.startswith(b"\xff\xd8\xff"):
        return _read_jpeg
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _read_webp
    return None


def _not_an_image(data: bytes) -> ImageError:
    for magic, name in _OTHER_FORMATS.items():
        if data.startswith(magic):
            return ImageError("format", f"{name}", f"convert it, and {SEND}")
    if data[4:8] == b"ftyp" and (name := _ISO_MEDIA.get(bytes(data[8:12]))):
        return ImageError("format", name, f"convert it, and {SEND}")
    sample = bytes(data[:_SAMPLE])
    if _URL.match(sample):
        return ImageError("not_an_image", "a URL, which is never fetched", "send the bytes of the image file")
    if sample.startswith(_BASE64):
        return ImageError("not_an_image", "base64 text", "decode it, and send the bytes of the image file")
    if sample.isascii() and sample.decode("ascii").replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return ImageError("not_an_image", "text where an image belongs", "send the bytes of the image file")
    return ImageError("not_an_image", "not an image", SEND)


def _read_png(data: bytes) -> Header:
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise damaged("PNG", "it has no header chunk")
    is_animated = False
    position = len(_PNG)
    chunks = 0
    while position + 8 <= len(data):
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise damaged("PNG", f"it has more than {MAX_CHUNKS:,} chunks")
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"acTL":
            is_animated = is_animated or int.from_bytes(data[position + 8 : position + 12], "big") > 1
        position += 12 + length
    width = int.from_bytes(data[16:20], "big")
    height = int.from_bytes(data[20:24], "big")
    return Header("PNG", width, height, is_animated)


def _read_jpeg(data: bytes) -> Header:
    size: tuple[int, int] | None = None
    position = 2
    segments = scans = 0
    while match := _MARKER.search(data, position):
        marker = data[match.start(1)]
        position = match.end()
        if marker == _END_OF_IMAGE:
            break
        if marker in (_START_OF_IMAGE, _TEMPORARY):
            continue
        segments += 1
        scans += marker == _START_OF_SCAN
        if segments > MAX_SEGMENTS or scans > MAX_SCANS:
            limit = f"{MAX_SEGMENTS:,} segments or {MAX_SCANS} scans"
            raise damaged("JPEG", f"it has more than {limit}")
        if marker in _FRAMES and size is None and position + 7 <= len(data):
            height = int.from_bytes(data[position + 3 : position + 5], "big")
            width = int.from_bytes(data[position + 5 : position + 7], "big")
            size = (width, height)
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    if size is None:
        raise damaged("JPEG", "it has no frame header")
    return Header("JPEG", *size)


def _read_webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8 " and len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
        return Header("WEBP", width, height)
    if kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X" and len(data) >= 30:
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return Header("WEBP", width, height, is_animated=bool(data[20] & 0x02))
    raise damaged("WebP", "it has no frame header")
