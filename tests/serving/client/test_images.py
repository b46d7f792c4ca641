"""Images in a client's rows: bytes, paths and PIL's images; a str is always a text."""

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protos import sidecast_pb2 as pb
from serving.client import requests as calls
from serving.client.aio import AsyncClient
from serving.client.arguments import write_row
from serving.client.client import Client
from serving.client.errors import InvalidInputError
from serving.client.results import Prompt, Row
from tests.serving.api_kit import CAPTIONS, VQA, Parlour
from vision import decode_image


def pixels(size: tuple[int, int] = (5, 3), channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (size[1], size[0], channels), np.uint8)


def image_of(row: pb.Row) -> np.ndarray:
    return decode_image(row.images["image"])


def test_bytes_are_sent_unchanged_and_texts_are_texts(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"cat")
    row: Row = {
        "question": str(tmp_path / "cat.png"),
        "image": b"\xff\0",
        "other": bytearray(b"b"),
        "third": memoryview(b"c"),
    }
    images = {"image": b"\xff\0", "other": b"b", "third": b"c"}
    assert write_row(row, "row") == pb.Row(fields={"question": str(tmp_path / "cat.png")}, images=images)
    assert write_row(Prompt("is it?", {"image": b"x"}), "row") == pb.Row(prompt="is it?", images={"image": b"x"})


def test_a_path_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat.png").write_bytes(b"cat")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "cat.png", Path("~/cat.png")):
        assert write_row({"image": path}, "row") == pb.Row(images={"image": b"cat"})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Path("no/such.png"), "rows[0].image: cannot be read: 'no/such.png': No such file or directory"),
        (Path(), "rows[0].image: cannot be read: '.': Is a directory"),
        (Path("a\0b"), "rows[0].image: cannot be read: 'a\\x00b': embedded null byte"),
        (Image.new("F", (2, 2)), "rows[0].image: is a PIL image of mode F, which is not sent; convert it to RGB first"),
        (Image.new("RGB", (0, 2)), "rows[0].image: cannot be saved as PNG: "),
        (3.5, "rows[0].image: must be a text, or an image as bytes, a path or a PIL.Image, got float"),
        (pixels(), "rows[0].image: must be a text, or an image as bytes, a path or a PIL.Image, got ndarray"),
        (None, "rows[0].image: must be a text, or an image as bytes, a path or a PIL.Image, got NoneType"),
    ],
)
def test_what_is_no_image_is_named(value: Any, says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        calls.predict("vqa", [{"question": "q", "image": value}], None, None, None, None, 0, "")
    assert says in str(caught.value)


def test_a_path_without_an_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.client.images.MAX_FILE_BYTES", 1000)
    with pytest.raises(
        InvalidInputError, match=r"row\.image: cannot be read: '/dev/zero': it has more than 1,000 bytes"
    ):
        write_row({"image": Path("/dev/zero")}, "row")


@pytest.mark.parametrize("images", [{"image": "cat.png"}, {"image": None}])
def test_a_prompts_images_are_no_texts(images: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"row\.image: must be bytes, a path or a PIL\.Image, got"):
        write_row(Prompt("q", images), "row")


def test_pil_images_are_sent_without_loss() -> None:
    rgb = pixels()
    np.testing.assert_array_equal(image_of(write_row({"image": Image.fromarray(rgb)}, "row")), rgb)
    cmyk = Image.fromarray(rgb).convert("CMYK")
    np.testing.assert_array_equal(image_of(write_row({"image": cmyk}, "row")), np.asarray(cmyk.convert("RGB")))
    palette = Image.fromarray(rgb).quantize(4)
    np.testing.assert_array_equal(image_of(write_row({"image": palette}, "row")), np.asarray(palette.convert("RGB")))


def test_a_photograph_that_pil_opened_stays_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    Image.fromarray(pixels((16, 8))).save(file, format="PNG", exif=exif)
    opened = Image.open(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(image_of(write_row({"image": opened}, "row")), decode_image(file.getvalue()))
    assert image_of(write_row({"image": opened}, "row")).shape == (16, 8, 3)


def test_both_clients_send_images(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"cat")
    row = {"question": "a cat?", "image": tmp_path / "cat.png"}
    sent = {"question": "a cat?", "image": b"cat"}

    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.predict("vqa", [row])
            await client.predict_tasks(["vqa"], [row])
            async with client.stream("captions", {"image": tmp_path / "cat.png"}) as stream:
                await stream.result()

    with Parlour(tmp_path, (VQA, CAPTIONS)).open() as parlour:
        with Client(parlour.address) as client:
            client.predict("vqa", [row])
            client.predict_tasks(["vqa"], [row])
            client.stream("captions", {"image": tmp_path / "cat.png"}).result()
        asyncio.run(ask(parlour.address))
        assert parlour.service.rows == [[sent], [sent], [{"image": b"cat"}]] * 2


async def test_the_async_client_reads_files_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    read = "serving.client.images.read_image_file"
    monkeypatch.setattr(read, lambda _: threads.append(threading.current_thread()) or b"x")
    async with AsyncClient("127.0.0.1:1", retry=False) as client:
        with pytest.raises(Exception, match=r"127\.0\.0\.1:1"):
            await client.predict("vqa", [{"image": Path("cat.png")}], timeout=5)
    assert threads
    assert threads[0] is not threading.main_thread()


def test_questions_about_one_image_go_to_one_server() -> None:
    def metadata(*rows: Row) -> object:
        return calls.predict("vqa", rows, None, None, None, None, 0, "").metadata

    one = metadata({"question": "a cat?", "image": b"cat"})
    assert one == metadata({"question": "a dog?", "image": b"cat"})
    assert one != metadata({"question": "a cat?", "image": b"dog"})
    assert one != metadata({"question": "a cat?"})
