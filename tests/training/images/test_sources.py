"""The images of rows: the columns that name them, and their features in memory and on disk."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tests.training import pictures, toy
from training.data import check_renames, known_names, read_examples, read_labelled, read_to_evaluate, split
from training.errors import DataError, RecipeError
from training.images import ImageFeatures, ImageInputs, check_images, open_images, with_bytes
from training.images.disk_cache import PART, STALE_S, DiskCache
from vision import FeatureFile, load_encoder

IMAGES = pictures.pictures(12)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory):
    return load_encoder(pictures.encoder_folder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder_of(tmp_path_factory.mktemp("images"), IMAGES)


def test_the_column_of_ids_is_named_as_the_field_or_renamed(tmp_path):
    for column, renames in (("image", {}), ("image_id", {}), ("picture", {"image": "picture"})):
        row = {column: 7, "question": "what", "label": "red"}
        path = toy.write(tmp_path / f"{column}.jsonl", [row])
        check_renames([pictures.TASK], renames)
        [example] = read_examples(path, pictures.TASK, renames)
        assert example.fields == {"question": "what", "image": "7"}
        [example] = read_to_evaluate(path, pictures.TASK, renames)
        assert example.target == "red"
    assert known_names(pictures.TASK) == ("question", "image", "label", "id")


def test_ids_count_where_the_image_itself_is_in_the_row(tmp_path):
    columns = {"image_id": ["a"], "image": [b"bytes"], "question": ["what"], "label": ["red"]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    [example] = read_examples(tmp_path / "rows.parquet", pictures.TASK)
    assert example.fields["image"] == "a"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question": "what", "label": "red"}, "column 'image' is missing; .* image or image_id, or --rename"),
        ({"question": "what", "label": "red", "image": ["a"]}, "column 'image' holds no ids"),
        ({"question": "what", "label": "red", "image_id": " "}, "field 'image' is empty"),
        ({"question": "what", "label": "red", "image_id": None}, "field 'image' is null"),
    ],
)
def test_rows_without_an_image(tmp_path, row, why):
    path = toy.write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=why):
        read_examples(path, pictures.TASK)


def test_a_missing_image_is_named_by_file_line_and_id(tmp_path, folder):
    rows = [
        {"image_id": "p/1", "question": "what", "label": "blue"},
        {"image_id": "p/77", "question": "what", "label": "blue"},
    ]
    path = toy.write(tmp_path / "rows.jsonl", rows)
    examples = read_examples(path, pictures.TASK)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: image 'p/77' is not in "):
        check_images(pictures.TASK, path, examples, open_images(folder))


def test_a_split_keeps_the_rows_of_an_image_together(tmp_path):
    path = toy.write(tmp_path / "rows.jsonl", pictures.rows(pictures.TASK, list(IMAGES), 60))
    training, validation = split(read_labelled(path, pictures.TASK), 0.3, 0, by=pictures.TASK.images)
    seen = [{example.fields["image"] for example in part.examples} for part in (training, validation)]
    assert seen[0].isdisjoint(seen[1])
    assert len(training.examples) + len(validation.examples) == 60


def test_rows_as_servers_take_them(folder):
    [row] = with_bytes(pictures.TASK, [{"question": "what", "image": "p/3"}], open_images(folder))
    assert row == {"question": "what", "image": IMAGES["p/3"]}


def inputs(folder: Path, encoder, cache: Path | None) -> ImageInputs:
    return ImageInputs(source=open_images(folder), encoder=encoder, cache_dir=cache)


def silent(done: int, total: int) -> None:
    pass


def test_features_are_those_of_the_encoder_whoever_is_in_the_batch(folder, encoder, tmp_path):
    together = ImageFeatures(inputs(folder, encoder, None), 4, 10**6)
    steps: list[tuple[int, int]] = []
    together.prepare(IMAGES, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (12, 12)
    alone = ImageFeatures(inputs(folder, encoder, None), 4, 0)
    for image_id in IMAGES:
        assert torch.equal(alone.read([image_id]), together.read([image_id]))
    images = together.images([("p/1",), ("p/2",), ("p/1",)])
    assert images.features.shape == (2, 4, 16)
    assert images.rows == [(0,), (1,), (0,)]


def test_images_of_equal_bytes_are_encoded_once(tmp_path, encoder):
    copies = pictures.folder_of(tmp_path / "copies", {"a": IMAGES["p/1"], "b": IMAGES["p/1"]})
    features = ImageFeatures(inputs(copies, encoder, None), 4, 10**6)
    totals: list[int] = []
    features.prepare(["a", "b"], lambda done, total: totals.append(total))
    assert set(totals) == {1}
    assert torch.equal(features.read(["a"]), features.read(["b"]))


def test_the_disk_gives_back_what_was_added(tmp_path):
    cache = DiskCache(tmp_path, "key")
    cache.add("aa", torch.ones(4, 3).half())
    cache.add("bb", torch.full((4, 3), 1e6).bfloat16())
    cache.flush()
    again = DiskCache(tmp_path, "key")
    assert "aa" in again
    assert torch.equal(again.read("aa"), torch.ones(4, 3).half())
    assert again.read("bb").dtype == torch.bfloat16
    assert again.read("cc") is None
    assert DiskCache(tmp_path, "other").read("aa") is None


def test_values_that_float16_cannot_hold_are_kept(tmp_path):
    save_file({"a": torch.full((4, 3), 1e6)}, tmp_path / "features.safetensors")
    features = ImageFeatures(ImageInputs(source=FeatureFile(tmp_path / "features.safetensors")), 4, 10**6)
    features.prepare(["a"], silent)
    assert features.read(["a"]) == pytest.approx(1e6, rel=0.01)


def test_damaged_files_of_the_cache_are_passed_over(tmp_path):
    cache = DiskCache(tmp_path, "key")
    cache.add("aa", torch.ones(4, 3))
    cache.flush()
    [file] = cache.folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    assert DiskCache(tmp_path, "key").read("aa") is None
    file.write_bytes(b"")
    assert "aa" not in DiskCache(tmp_path, "key")


def test_part_files_are_removed_when_they_are_old(tmp_path):
    folder = DiskCache(tmp_path, "key").folder
    folder.mkdir(parents=True)
    for name, age in (("old", STALE_S + 60), ("new", 60)):
        path = folder / f"{name}{PART}"
        path.write_bytes(b"half a file")
        os.utime(path, (time.time() - age,) * 2)
    DiskCache(tmp_path, "key")
    assert [path.name for path in folder.iterdir()] == [f"new{PART}"]


def test_a_disk_that_cannot_be_written_is_done_without(tmp_path, folder, encoder):
    (tmp_path / "file").write_bytes(b"")
    features = ImageFeatures(inputs(folder, encoder, tmp_path / "file" / "cache"), 4, 10**6)
    features.prepare(IMAGES, silent)
    assert features.read(["p/1"]).shape == (1, 4, 16)
    assert "cannot be written" in features.disk_fault


def _write_shards(path: Path, name: str, count: int) -> None:
    cache = DiskCache(path, "key")
    for number in range(count):
        cache.add(f"{name}{number}", torch.full((4, 3), float(number)))
        cache.flush()


def test_two_processes_write_at_once(tmp_path):
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write_shards, args=(tmp_path, name, 10)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    cache = DiskCache(tmp_path, "key")
    for name in "ab":
        for number in range(10):
            assert cache.read(f"{name}{number}") is not None


def test_a_writer_that_is_killed_leaves_whole_files_alone(tmp_path):
    writer = multiprocessing.get_context("fork").Process(target=_write_shards, args=(tmp_path, "a", 10**6))
    writer.start()
    folder = DiskCache(tmp_path, "key").folder
    while not (folder.is_dir() and len(list(folder.glob("*.safetensors"))) >= 3):
        assert writer.is_alive()
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(60)
    cache = DiskCache(tmp_path, "key")
    for file in folder.glob("*.safetensors"):
        assert file.stat().st_size > 0
    for number in range(3):
        assert torch.equal(cache.read(f"a{number}"), torch.full((4, 3), float(number)))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"b": torch.ones(4, 3)}, "has no image 'a'"),
        ({"a": torch.ones(6, 3)}, "'a' has 6 tokens; a square grid of at least 4"),
        ({"a": torch.ones(1, 3)}, "'a' has 1 tokens"),
        ({"A": torch.ones(4, 3), "a": torch.ones(4, 5)}, "features a token"),
    ],
)
def test_features_of_another_shape(tmp_path, tensors, why):
    save_file(tensors, tmp_path / "features.safetensors")
    features = ImageFeatures(ImageInputs(source=FeatureFile(tmp_path / "features.safetensors")), 4, 10**6)
    with pytest.raises(DataError, match=why):
        features.prepare(["a", *tensors], silent)


def test_an_encoder_with_too_few_tokens(folder, encoder):
    with pytest.raises(RecipeError, match="has 4 x 4"):
        ImageFeatures(inputs(folder, encoder, None), 36, 10**6)


def test_features_that_the_named_encoder_has_not_made(tmp_path, encoder):
    save_file({"a": torch.ones(4, 3)}, tmp_path / "features.safetensors")
    source = FeatureFile(tmp_path / "features.safetensors")
    with pytest.raises(DataError, match="name the encoder that made them"):
        ImageFeatures(ImageInputs(source=source, encoder=encoder), 4, 10**6)
