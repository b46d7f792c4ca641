"""Image files to RGB pixels: JPEG, PNG and WebP, with limits that are checked before anything is decoded.

A file's orientation (EXIF) is applied, transparency is laid on white, 16 bits become 8, CMYK becomes RGB by Pillow's
formula; colour profiles are ignored. Animations are refused: one frame of one would be a silent choice. Phones save
several pictures in one JPEG (MPO): the first is the photograph. Knows no tensors.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vision.errors import ImageError
from vision.headers import SEND, Header, damaged, read_header

_ORIENTATION_TAG = 0x0112
_SIXTEEN_TO_EIGHT = ((np.arange(65_536) + 128) // 257).astype(np.uint8)
STRIP = 256
"""Rows of pixels that are converted at a time."""
DRAFT_MARGIN = 2
"""A JPEG is decoded at a smaller scale only where both edges stay this many times longer than needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What an image file may have at most."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 25_000_000
    """Width times height: cameras of 24 megapixels pass. Decoding takes about 11 bytes a pixel for a moment, of a WebP
    20."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise ValueError(f"limits must be at least 1, got {self.max_bytes} bytes and {self.max_pixels} pixels")


DEFAULT_LIMITS = ImageLimits()


def decode_image(
    data: bytes | bytearray | memoryview, limits: ImageLimits = DEFAULT_LIMITS, *, edge: int | None = None
) -> np.ndarray:
    """Decode an image file.

    Args:
        data: the bytes of a JPEG, PNG or WebP file. A path or URL is refused, and never opened.
        limits: checked on the bytes and on the header, before decoding.
        edge: pixels that the image's shorter edge needs at least. A JPEG that is far larger (four times and more) is
            decoded at a half, quarter or eighth of its size, which takes less time and memory; the pixels then differ
            slightly from those of the full size. None: always at full size.

    Returns:
        (height, width, 3) uint8, upright.
    Raises:
        ImageError: not such a file, over a limit, animated, damaged or truncated.
    """
    raw = _checked_bytes(data, limits)
    header = read_header(raw)
    _check_header(header, limits)
    try:
        return _decode(raw, header, edge)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise damaged(header.format, _first_line(error)) from None


def _checked_bytes(data: object, limits: ImageLimits) -> bytes:
    if not isinstance(data, bytes | bytearray | memoryview):
        kind = "text" if isinstance(data, str) else type(data).__name__
        raise ImageError("not_bytes", f"{kind} where bytes belong", "read the image file, and send its bytes")
    size = memoryview(data).nbytes
    if size == 0:
        raise ImageError("empty", "an image of no bytes", SEND)
    if size > limits.max_bytes:
        what = f"an image file of {size:,} bytes, and at most {limits.max_bytes:,} are taken"
        raise ImageError("too_many_bytes", what, "make it smaller, or save it as JPEG or WebP")
    return bytes(data)


def _check_header(header: Header, limits: ImageLimits) -> None:
    if header.width * header.height > limits.max_pixels:
        what = f"an image of {header.width:,} x {header.height:,} pixels, and at most {limits.max_pixels:,} are taken"
        raise ImageError("too_many_pixels", what, "scale it down")
    if header.is_animated:
        raise ImageError("animated", "an animated image", "send the one frame that is meant")


def _decode(raw: bytes, header: Header, edge: int | None) -> np.ndarray:
    with Image.open(io.BytesIO(raw), formats=[header.format]) as image:
        if image.size != (header.width, header.height):
            raise damaged(header.format, "its headers contradict each other")
        if edge is not None and header.format == "JPEG":
            image.draft(None, (DRAFT_MARGIN * edge, DRAFT_MARGIN * edge))
        image.load()
        orientation = _orientation(image)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, STRIP):  # conversions of the whole image would take its memory several times
            strip = image.crop((0, top, image.width, min(image.height, top + STRIP)))
            pixels[top : top + STRIP] = np.asarray(_to_rgb(strip))
    return _upright(pixels, orientation)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo what the EXIF orientation says of the stored rows and columns."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata, of many kinds: the pixels are good, and viewers show them
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_sixteen_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    return _on_white(layer, layer.getchannel("A"))


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits: Pillow's own conversion cuts values off at 255. (16-bit colours it reads as 8 bits.)"""
    values = np.asarray(image).astype(np.uint16)
    grey = Image.fromarray(_SIXTEEN_TO_EIGHT[values])
    if (transparent := image.info.get("transparency")) is None:
        return grey.convert("RGB")
    return _on_white(grey.convert("RGB"), Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))


def _on_white(layer: Image.Image, alpha: Image.Image) -> Image.Image:
    page = Image.new("RGB", layer.size, (255, 255, 255))
    page.paste(layer, mask=alpha)
    return page


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
