"""bench_vision: its probes on tiny data sets whose answers the colours tell, or do not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from benchmarks.training.bench_vision import Images, colours, measure, read_daquar, read_easy_vqa, read_flickr8k
from tests.vision.images import saved

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


def write(folder: Path, parts: dict[str, list[dict[str, Any]]], images: dict[str, tuple[int, int, int]]) -> Path:
    folder.mkdir()
    for part, rows in parts.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [saved(np.full((12, 12, 3), colour, np.uint8)) for colour in images.values()]
    parquet.write_table(pa.table({"image_id": list(images), "image": files}), folder / "images.parquet")
    return folder


def coloured(prefix: str, count: int) -> dict[str, str]:
    return {f"{prefix}{number}": list(COLOURS)[number % 3] for number in range(count)}


Rows = Callable[[str, str], list[dict[str, Any]]]


def make(folder: Path, rows: Rows) -> Path:
    train = coloured("train/", 30)
    test = coloured("test/", 12)
    parts = {
        name: [row for image, colour in images.items() for row in rows(image, colour)]
        for name, images in (("train", train), ("validation", test))
    }
    return write(folder, parts, {image: COLOURS[colour] for image, colour in (train | test).items()})


def scores(images: Images) -> dict[str, float]:
    found, seconds = measure(images, colours, quiet=True)
    assert seconds > 0
    return found["6 x 6 colours"]


def test_easy_vqa_asks_for_shape_and_colour(tmp_path: Path) -> None:
    shapes = ["circle", "rectangle", "triangle"]

    def rows(image: str, colour: str) -> list[dict[str, Any]]:
        shape = shapes[(int(image.split("/")[1]) // 3) % 3]
        answers = (("what shape is present?", shape), ("what color is the shape?", colour), ("is it red?", "no"))
        return [{"image_id": image, "question": question, "answer": answer} for question, answer in answers]

    found = scores(read_easy_vqa(make(tmp_path / "easy_vqa", rows), (30, 12)))
    assert found["easy_vqa colour"] == 1
    assert found["easy_vqa shape"] < 0.6  # the colour does not tell it


def test_flickr8k_asks_for_words_of_two_captions(tmp_path: Path) -> None:
    def rows(image: str, colour: str) -> list[dict[str, Any]]:
        return [{"image_id": image, "captions": [f"A {colour} ball", f"The {colour} ball .", f"one {image}"]}]

    images = read_flickr8k(make(tmp_path / "flickr8k", rows), (30, 12))
    assert {len(row) for row in images.probes[0].train.values()} == {4}  # ball and three colours
    assert scores(images)["flickr8k words"] == pytest.approx(1)


def test_daquar_leaves_out_training_images_that_are_tested(tmp_path: Path) -> None:
    def rows(image: str, colour: str) -> list[dict[str, Any]]:
        return [{"image_id": image, "question": "what is it", "answer": f"{colour}, 3"}]

    folder = make(tmp_path / "daquar", rows)
    with (folder / "train.jsonl").open("a") as lines:
        lines.write(json.dumps({"image_id": "test/1", "question": "and this", "answer": "red"}) + "\n")
    images = read_daquar(folder, (100, 100))
    assert len(images.probes[0].train) == 30
    assert not set(images.probes[0].train) & set(images.probes[0].test)
    assert scores(images)["daquar answers"] == pytest.approx(1)
