"""Images by id, from folders and from Parquet files."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from table_files import ImageSourceError, open_images
from tests.training import pictures

IMAGES = pictures.pictures(12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder_of(tmp_path_factory.mktemp("images"), IMAGES)


@pytest.mark.parametrize("kind", ["folder", "bytes", "struct"])
def test_every_source_has_the_same_images(tmp_path, folder, kind):
    path = folder
    if kind != "folder":
        path = pictures.parquet_of(tmp_path / "images.parquet", IMAGES, as_struct=kind == "struct")
    source = open_images(path)
    assert all(image_id in source for image_id in IMAGES)
    assert "p/99" not in source
    wanted = ["p/11", "p/2", "p/7", "p/2"]
    read = list(source.read_all(wanted))
    assert len(read) == 3
    assert dict(read) == {image_id: IMAGES[image_id] for image_id in wanted}
    with pytest.raises(ImageSourceError, match="has no image 'p/99'"):
        list(source.read_all(["p/99"]))
    each = dict(source.read_each(["p/3", "p/99", "p/1"]))
    assert (each["p/3"], each["p/1"]) == (IMAGES["p/3"], IMAGES["p/1"])
    assert isinstance(each["p/99"], ImageSourceError)


def test_a_folder_names_files_with_or_without_suffix(tmp_path):
    (tmp_path / "a.b.JPG").write_bytes(b"1")
    (tmp_path / "notes.txt").write_bytes(b"2")
    source = open_images(tmp_path)
    assert dict(source.read_all(["a.b.JPG", "a.b"])) == {"a.b.JPG": b"1", "a.b": b"1"}
    assert "notes" not in source
    assert "a" not in source


def test_two_files_of_one_name_must_be_told_apart(tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    source = open_images(tmp_path)
    with pytest.raises(ImageSourceError, match=r"several files, a.jpg, a.png"):
        "a" in source  # noqa: B015
    [(_, found)] = source.read_each(["a"])
    assert isinstance(found, ImageSourceError)
    assert "a.png" in source


def test_nothing_outside_the_folder_is_read(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (inside / "link.png").symlink_to(secret)
    source = open_images(inside)
    for image_id in ("../secret.png", "../secret", str(secret), "link.png", "link", "", ".", "a\0b", "x" * 5000):
        assert image_id not in source, image_id


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"image": [b"1"]}, "no column 'image_id'"),
        ({"image_id": ["a"]}, "no column 'image'"),
        ({"image_id": ["a", "a"], "image": [b"1", b"2"]}, "the image 'a' twice"),
        ({"image_id": ["a"], "image": ["a/path.png"]}, "image 'a' has no bytes"),
        ({"image_id": ["a"], "image": [{"path": "a.png", "bytes": None}]}, "image 'a' has no bytes"),
    ],
)
def test_a_parquet_file_that_is_no_source_of_images(tmp_path, columns, why):
    pq.write_table(pa.table(columns), tmp_path / "images.parquet")
    with pytest.raises(ImageSourceError, match=why):
        list(open_images(tmp_path / "images.parquet").read_all(["a"]))


def test_what_is_no_source_of_images(tmp_path):
    with pytest.raises(ImageSourceError, match="no such folder or file"):
        open_images(tmp_path / "missing")
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(ImageSourceError, match=r"a \.parquet file"):
        open_images(tmp_path / "images.zip")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ImageSourceError, match="bad Parquet"):
        open_images(tmp_path / "bad.parquet")


def test_an_error_goes_between_processes():
    error = ImageSourceError(Path("images"), "has no image 'a'")
    assert str(pickle.loads(pickle.dumps(error))) == "images: has no image 'a'"


def test_a_file_that_is_too_large_for_an_image_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("table_files.image_sources.MAX_FILE_BYTES", 1000)
    for name, size in (("a.png", 1000), ("b.png", 1001)):
        (tmp_path / name).write_bytes(bytes(size))
    each = dict(open_images(tmp_path).read_each(["a", "b"]))
    assert len(each["a"]) == 1000
    assert "b.png: has 1,001 bytes, and an image has at most 1,000" in str(each["b"])
