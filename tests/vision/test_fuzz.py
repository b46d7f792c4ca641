"""Damaged and hostile image files: an array or an ImageError, whatever the bytes; no crash, no hang, bounded memory."""

import resource
import sys
import zlib
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.vision.images import chunk, noise, png, saved
from vision import ImageError, ImageLimits, decode_image

LIMITS = ImageLimits(max_bytes=2**20, max_pixels=2**18)
MEMORY_MB = 150
"""Growth of the process that is let pass: a decoder's few MB an image, and what the allocator keeps."""
EXAMPLES = 500
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Pillow warns of odd metadata
fuzzed = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@cache
def files() -> tuple[bytes, ...]:
    """Small files of every kind that is decoded differently."""
    colour = noise(24, 32)
    layer = noise(24, 32, channels=4)
    palette = Image.fromarray(colour).quantize(16)
    return (
        saved(colour),
        saved(layer),
        saved(colour[..., 0].astype(np.uint16) * 257),
        saved(palette, transparency=3),
        saved(colour, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
        saved(colour, "JPEG", progressive=True, quality=40),
        saved(palette.convert("CMYK"), "JPEG"),
        saved(colour, "WEBP"),
        saved(layer, "WEBP", lossless=True),
        saved(layer, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    )


def decode(data: bytes) -> None:
    """Decode at full size and at a smaller one: pixels within the limit, or an ImageError."""
    for edge in (None, 4):
        try:
            pixels = decode_image(data, LIMITS, edge=edge)
        except ImageError as error:
            says = str(error)
        else:
            says = "pixels"
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert pixels.size <= 3 * LIMITS.max_pixels
        assert len(says) < 400
        assert "\n" not in says


def peak_mb() -> float:
    """The most memory that the process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@pytest.fixture(autouse=True, scope="module")
def memory() -> None:
    """Warm up: what the first decoding takes is no growth."""
    for data in files():
        decode(data)


@fuzzed
@given(st.data())
def test_bytes_that_changed(data: st.DataObject) -> None:
    before = peak_mb()
    file = bytearray(data.draw(st.sampled_from(files())))
    header = data.draw(st.booleans())
    places = st.integers(0, min(63, len(file) - 1) if header else len(file) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        file[place] = value
    decode(bytes(file))
    assert peak_mb() - before < MEMORY_MB


@fuzzed
@given(st.data())
def test_parts_cut_out_and_repeated(data: st.DataObject) -> None:
    before = peak_mb()
    file = data.draw(st.sampled_from(files()))
    start = data.draw(st.integers(0, len(file)))
    end = data.draw(st.integers(start, len(file)))
    times = data.draw(st.sampled_from([0, 0, 2, 3, 50]))
    decode(file[:start] + file[start:end] * times + file[end:])
    assert peak_mb() - before < MEMORY_MB


@fuzzed
@given(st.data())
def test_files_spliced_from_two(data: st.DataObject) -> None:
    first = data.draw(st.sampled_from(files()))
    second = data.draw(st.sampled_from(files()))
    cut = data.draw(st.integers(0, len(first)))
    decode(first[:cut] + second[data.draw(st.integers(0, len(second))) :])


@fuzzed
@given(
    width=st.integers(0, 2**32 - 1) | st.integers(0, 600),
    height=st.integers(0, 2**32 - 1) | st.integers(0, 600),
    depth=st.sampled_from([0, 1, 2, 4, 8, 16, 255]),
    colour=st.integers(0, 7),
    kind=st.sampled_from([b"tRNS", b"PLTE", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"gAMA", b"acTL", b"fcTL", b"pHYs"]),
    content=st.binary(max_size=300),
    rows=st.binary(max_size=2000),
)
def test_a_png_of_any_header_and_chunk(
    width: int, height: int, depth: int, colour: int, kind: bytes, content: bytes, rows: bytes
) -> None:
    before = peak_mb()
    decode(png(width, height, chunk(kind, content), chunk(b"IDAT", zlib.compress(rows)), depth=depth, colour=colour))
    assert peak_mb() - before < MEMORY_MB


@fuzzed
@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\1\0\0WEBPVP8 ", b"RIFF\0\1\0\0WEBPVP8X", b""]),
       st.binary(max_size=2000))  # fmt: skip
def test_noise_after_a_magic_number(magic: bytes, content: bytes) -> None:
    decode(magic + content)


def test_memory_does_not_grow_with_the_number_of_damaged_files() -> None:
    """A leak of the decoders: 1,500 damaged files of 200 kB of pixels each would be 300 MB."""
    whole = [saved(noise(256, 256, seed=seed), kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    cut = [data[: len(data) * 3 // 4] for data in whole]
    for data in cut * 20:
        decode(data)
    before = peak_mb()
    for data in cut * 500:
        decode(data)
    assert peak_mb() - before < 50
