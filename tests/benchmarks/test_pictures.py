"""The benchmarks' image files, and the encoder that stands in for the demo's."""

import pytest

from benchmarks.harness import pictures
from benchmarks.harness.pictures import SCENES, SIZE, Pictures, find_encoder, make_random_lite2
from demo.encoders import LITE2_CONFIG
from demo.folders import DemoError
from vision import decode_image, load_encoder


def test_pictures_are_new_files_of_photograph_size_and_the_same_for_a_seed():
    first, again = Pictures(seed=1), Pictures(seed=1)
    files = [first.new() for _ in range(SCENES + 1)]
    assert len(set(files)) == SCENES + 1
    assert [again.new() for _ in range(3)] == files[:3]
    assert decode_image(files[0]).shape == (SIZE[1], SIZE[0], 3)
    assert (decode_image(files[0]) == decode_image(files[SCENES])).all()
    assert (decode_image(files[0]) != decode_image(files[1])).any()
    assert 5_000 < first.file_bytes < 50_000


def test_a_named_encoder_is_used_and_one_that_cannot_be_had_is_replaced(tmp_path, monkeypatch):
    def refuse(cache):
        raise DemoError("no package index answers", "try again")

    monkeypatch.setattr(pictures, "get_lite2", refuse)
    monkeypatch.setattr(pictures, "make_random_lite2", lambda folder: folder)
    assert find_encoder(tmp_path, tmp_path) == (tmp_path, "given")
    folder, weights = find_encoder(None, tmp_path)
    assert folder.parent == tmp_path
    assert weights == "random"


@pytest.mark.slow
def test_the_encoder_with_random_weights_has_the_demos_shape(tmp_path):
    encoder = load_encoder(make_random_lite2(tmp_path / "random"))
    assert encoder.grid == (9, 9)
    assert encoder.width == 352
    assert encoder.preprocessing.size == (LITE2_CONFIG["image_size"],) * 2
