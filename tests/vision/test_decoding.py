"""Bytes to upright RGB pixels, and one clear error for everything that is no such image."""

import io
import pickle
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.vision.images import chunk, noise, png, saved
from vision import Header, ImageError, ImageLimits, decode_image, read_header
from vision.headers import MAX_CHUNKS, MAX_SCANS

PHOTO = noise(48, 64)


def fault_of(data: object, **limits: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, ImageLimits(**limits))  # type: ignore[arg-type]
    assert caught.value.reason == "IMAGE"
    assert str(caught.value) == f"{caught.value.what}; {caught.value.advice}"
    return caught.value


@pytest.mark.parametrize(
    ("kind", "options", "difference"),
    [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("WEBP", {"quality": 95}, 30), ("JPEG", {"quality": 95}, 30)],
)
def test_the_three_formats_give_the_same_pixels(kind: str, options: dict[str, object], difference: int) -> None:
    pixels = decode_image(saved(PHOTO, kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.shape == PHOTO.shape
    assert np.abs(pixels.astype(int) - PHOTO).max() <= difference


def test_bytes_bytearray_and_memoryview_are_one() -> None:
    data = saved(PHOTO)
    for view in (bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(decode_image(view), PHOTO)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_single_pixel(kind: str) -> None:
    pixels = decode_image(saved(np.full((1, 1, 3), 200, np.uint8), kind))
    assert pixels.shape == (1, 1, 3)
    assert np.abs(pixels.astype(int) - 200).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_orientation_is_applied(orientation: int, kind: str) -> None:
    """The stored pixels are turned the wrong way, as a camera does; Pillow's own transposition is the reference."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True}
    data = saved(PHOTO, kind, exif=exif, **options)
    upright = decode_image(data)
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    expected = turns[orientation](PHOTO)
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected).max() <= (30 if kind == "JPEG" else 0)


def test_damaged_metadata_does_not_hide_good_pixels() -> None:
    data = saved(PHOTO, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode_image(data), PHOTO)


def test_grey_and_black_and_white() -> None:
    grey = PHOTO[..., 0]
    np.testing.assert_array_equal(decode_image(saved(grey)), np.stack([grey] * 3, axis=-1))
    bits = Image.fromarray(grey).convert("1")
    expected = np.stack([np.asarray(bits).astype(np.uint8) * 255] * 3, axis=-1)
    np.testing.assert_array_equal(decode_image(saved(bits)), expected)


def test_sixteen_bits_of_grey_are_scaled_not_cut() -> None:
    wide = np.array([[0, 128, 129, 257, 32_768, 65_535]], np.uint16)
    assert decode_image(saved(wide))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_sixteen_bits_of_grey_with_a_transparent_value() -> None:
    rows = zlib.compress(b"\0" + np.array([[1000, 65_535, 0]], ">u2").tobytes())
    data = png(3, 1, chunk(b"tRNS", (1000).to_bytes(2, "big")), chunk(b"IDAT", rows), depth=16, colour=0)
    assert decode_image(data)[0, :, 0].tolist() == [255, 255, 0]


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colours_are_scaled(colour: int, channels: int) -> None:
    values = np.full((1, channels), 0x8080, ">u2")
    if colour != 2:
        values[:, -1] = 0xFFFF  # opaque
    rows = zlib.compress(b"\0" + values.tobytes())
    assert decode_image(png(1, 1, chunk(b"IDAT", rows), depth=16, colour=colour)).tolist() == [[[128, 128, 128]]]


def test_transparency_is_laid_on_white() -> None:
    layer = np.zeros((1, 3, 4), np.uint8)
    layer[0, :, 0] = 200
    layer[0, :, 3] = [0, 128, 255]
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        pixels = decode_image(saved(layer, kind, **options))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[0, 1].tolist() == [227, 127, 127]
        assert pixels[0, 2].tolist() == [200, 0, 0]


def test_grey_with_alpha_and_transparent_colours() -> None:
    grey = Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8), "LA")
    assert decode_image(saved(grey))[0].tolist() == [[255] * 3, [10] * 3]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decode_image(saved(keyed, transparency=(1, 2, 3)))[0].tolist() == [[255] * 3, [4, 5, 6]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_a_palette_with_transparency(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    pixels = decode_image(saved(image, transparency=transparency))
    assert pixels[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_cmyk() -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 1] = 255  # magenta
    pixels = decode_image(saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - [255, 0, 255]).max() <= 4


def test_a_phone_s_photograph_of_several_pictures_is_its_first() -> None:
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))], quality=95)
    assert np.abs(decode_image(file.getvalue()).astype(int) - PHOTO).max() <= 30


def test_a_large_jpeg_is_decoded_smaller_where_less_is_needed() -> None:
    data = saved(noise(400, 800), "JPEG")
    assert decode_image(data).shape == (400, 800, 3)
    assert decode_image(data, edge=100).shape == (200, 400, 3)
    assert decode_image(data, edge=150).shape == (400, 800, 3)
    assert decode_image(data, edge=10).shape == (50, 100, 3)
    small = decode_image(data, edge=100).astype(int)
    full = np.asarray(Image.fromarray(decode_image(data)).resize((400, 200), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - full).mean() < 3


@pytest.mark.parametrize(
    ("data", "fault", "says"),
    [
        (b"", "empty", "no bytes"),
        ("https://example.org/dog.jpg", "not_bytes", "text where bytes belong"),
        (None, "not_bytes", "NoneType"),
        (b"https://example.org/dog.jpg", "not_an_image", "never fetched"),
        (b"  HTTP://example.org", "not_an_image", "never fetched"),
        (b"data:image/png;base64,iVBOR", "not_an_image", "never fetched"),
        (b"iVBORw0KGgoAAAANSUhEUgAA", "not_an_image", "base64"),
        (b"<svg xmlns='...'></svg>\n", "not_an_image", "text where an image belongs"),
        (b"what is in the picture?", "not_an_image", "text where an image belongs"),
        (bytes(range(256)), "not_an_image", "not an image"),
        (b"GIF89a" + bytes(20), "format", "a GIF"),
        (b"BM" + bytes(20), "format", "a BMP"),
        (b"MM\0*" + bytes(20), "format", "a TIFF"),
        (b"\0\0\0\x1cftypheic" + bytes(20), "format", "a HEIC"),
        (b"%PDF-1.7", "format", "a PDF"),
        (b"\x89PNG\r\n\x1a\n", "damaged", "PNG"),
        (b"\xff\xd8\xff\xe0", "damaged", "JPEG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "damaged", "WebP"),
    ],
)
def test_what_is_no_image_is_told_apart(data: object, fault: str, says: str) -> None:
    error = fault_of(data)
    assert error.fault == fault
    assert says in str(error)
    assert error.advice


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_damaged(kind: str, share: float) -> None:
    data = saved(PHOTO, kind)
    assert fault_of(data[: int(share * len(data))]).fault == "damaged"


def test_an_animation_is_refused() -> None:
    frames = [Image.fromarray(noise(16, 16, seed=seed)) for seed in range(3)]
    for kind in ("PNG", "WEBP"):
        error = fault_of(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert error.fault == "animated"
        assert "one frame" in error.advice


def test_a_file_of_too_many_bytes_is_refused() -> None:
    data = saved(PHOTO)
    assert fault_of(data, max_bytes=len(data) - 1).fault == "too_many_bytes"
    decode_image(data, ImageLimits(max_bytes=len(data)))


def test_too_many_pixels_are_refused_by_the_header() -> None:
    data = saved(PHOTO)
    assert fault_of(data, max_pixels=48 * 64 - 1).fault == "too_many_pixels"
    decode_image(data, ImageLimits(max_pixels=48 * 64))


def large_files() -> dict[str, bytes]:
    """Files of a few bytes that say they have 30,000 x 30,000 pixels (WebP: 16,383)."""
    jpeg = bytearray(saved(np.zeros((8, 8, 3), np.uint8), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = (30_000).to_bytes(2, "big") * 2
    side = 16_383
    canvas = (side - 1).to_bytes(3, "little") * 2
    extended = b"RIFF\0\0\0\0WEBPVP8X" + (10).to_bytes(4, "little") + b"\0\0\0\0" + canvas
    lossless = b"RIFF\0\0\0\0WEBPVP8L" + (20).to_bytes(4, "little") + b"\x2f"
    lossy = (
        b"RIFF\0\0\0\0WEBPVP8 " + (20).to_bytes(4, "little") + b"\0\0\0\x9d\x01\x2a" + side.to_bytes(2, "little") * 2
    )
    return {
        "PNG": png(30_000, 30_000, chunk(b"IDAT", zlib.compress(bytes(1000)))),
        "JPEG": bytes(jpeg),
        "WEBP, extended": extended,
        "WEBP, lossless": lossless + ((side - 1) | (side - 1) << 14).to_bytes(4, "little") + bytes(20),
        "WEBP, lossy": lossy,
    }


@pytest.mark.parametrize(("name", "data"), large_files().items(), ids=large_files())
def test_a_bomb_is_refused_without_its_memory(name: str, data: bytes, recwarn: pytest.WarningsRecorder) -> None:
    side = 16_383 if name.startswith("WEBP") else 30_000
    header = read_header(data)
    assert (header.width, header.height) == (side, side)
    tracemalloc.start()
    try:
        assert fault_of(data).fault == "too_many_pixels"
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    assert not recwarn.list


def test_a_png_s_text_is_not_inflated_without_limit() -> None:
    bomb = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(32 * 2**20)))
    assert fault_of(png(1, 1, bomb, chunk(b"IDAT", zlib.compress(bytes(4))))).fault == "damaged"


def test_a_png_of_countless_chunks_is_refused() -> None:
    few = chunk(b"IDAT", zlib.compress(bytes(4)))
    np.testing.assert_array_equal(decode_image(png(1, 1, *[chunk(b"teSt", b"")] * 100, few)), np.zeros((1, 1, 3)))
    assert "chunks" in str(fault_of(png(1, 1, *[chunk(b"teSt", b"")] * MAX_CHUNKS, few)))


def test_a_progressive_jpeg_of_countless_scans_is_refused() -> None:
    """Each scan costs a pass over the image; the last of a real file is repeated here."""
    data = saved(PHOTO, "JPEG", progressive=True)
    assert np.abs(decode_image(data).astype(int) - PHOTO).max() <= 60
    last = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[last:-2] * MAX_SCANS + data[-2:]
    assert f"{MAX_SCANS} scans" in str(fault_of(bomb))


def test_headers_that_contradict_each_other_are_damaged() -> None:
    """The canvas of an extended WebP file says 1 x 1; the frame in it is larger."""
    data = bytearray(saved(np.full((8, 8, 4), 9, np.uint8), "WEBP", exif=b"Exif\0\0x"))
    assert data[12:16] == b"VP8X"
    data[24:30] = bytes(6)
    assert read_header(bytes(data)) == Header("WEBP", 1, 1)
    assert fault_of(bytes(data)).fault == "damaged"


def test_the_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ImageLimits(max_pixels=0)


def test_an_error_survives_pickling() -> None:
    error = fault_of(b"GIF89a")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.fault, str(copy)) == (error.fault, str(error))
