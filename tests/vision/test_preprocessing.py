"""Pixels to a model's input: equal to the image processors of transformers that use Pillow."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.vision.folders import PROCESSORS, SIZES
from tests.vision.images import noise
from vision import EncoderError, Preprocessing
from vision.families import FAMILIES
from vision.preprocessing import read_preprocessing

IMAGES = {
    "wide": noise(50, 90),
    "tall": noise(120, 37),
    "small": noise(9, 11),
    "pixel": noise(1, 1),
    "equal": noise(32, 32),
}


def theirs(family: str, image: np.ndarray, **settings: Any) -> torch.Tensor:
    processor = PROCESSORS[family](**{**SIZES[family], **settings})
    return processor(images=image, return_tensors="pt", input_data_format="channels_last").pixel_values


def ours(family: str, **settings: Any) -> Preprocessing:
    return read_preprocessing({**SIZES[family], **settings}, FAMILIES[family].preprocessing)


@pytest.mark.parametrize("family", PROCESSORS)
@pytest.mark.parametrize("name", IMAGES)
def test_equal_to_transformers(family: str, name: str) -> None:
    image = IMAGES[name]
    torch.testing.assert_close(ours(family)([image]), theirs(family, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_folder_without_settings_gets_its_family_s(family: str) -> None:
    image = IMAGES["wide"]
    processor = PROCESSORS[family]()
    if family == "dinov2":  # its own size, as its publishers set it, is not the class's
        processor = PROCESSORS[family](size={"shortest_edge": 224})
    expected = processor(images=image, return_tensors="pt", input_data_format="channels_last").pixel_values
    found = read_preprocessing({}, FAMILIES[family].preprocessing)([image])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"resample": 0},
        {"resample": 1},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 0.01},
        {"crop_size": {"height": 24, "width": 40}},
        {"crop_size": {"height": 41, "width": 25}},
        {"do_center_crop": False, "size": {"height": 20, "width": 28}},
    ],
)
def test_every_setting_is_read(settings: dict[str, Any]) -> None:
    image = IMAGES["wide"]
    torch.testing.assert_close(ours("clip", **settings)([image]), theirs("clip", image, **settings), rtol=0, atol=1e-4)


def test_a_large_resnet_warps_without_a_crop() -> None:
    image = IMAGES["wide"]
    settings = {"size": {"shortest_edge": 384}}
    torch.testing.assert_close(ours("resnet", **settings)([image]), theirs("resnet", image, **settings))


def test_sizes_of_one_number_are_read_as_old_files_mean_them() -> None:
    assert ours("clip", size=32, crop_size=32) == ours("clip")
    assert ours("vit", size=32) == ours("vit")


def test_a_batch_is_its_images() -> None:
    prepare = ours("clip")
    images = list(IMAGES.values())
    assert torch.equal(prepare(images), torch.cat([prepare([image]) for image in images]))
    assert prepare([]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1), (7, 1000)])
def test_a_strip_is_resized_within_its_crop_alone(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At 32 pixels across, a strip of 1 x 30,000 would become 32 x 960,000; its middle is the same."""
    image = noise(*shape)
    prepare = ours("clip")
    found = prepare([image])
    monkeypatch.setattr("vision.preprocessing.STRETCH", 10**9)
    whole = prepare([image])
    step = 1 / 255 / min(prepare.std)  # one of 256 values
    assert (found - whole).abs().max() <= 1.01 * step
    assert (found != whole).float().mean() < 0.02


def test_another_size_keeps_the_part_of_the_image() -> None:
    cropped = Preprocessing(shortest=256, crop=(224, 224))
    assert cropped.resized(112) == Preprocessing(shortest=128, crop=(112, 112))
    assert cropped.edge == 256
    exact = Preprocessing(exact=(224, 224))
    assert exact.resized(112) == Preprocessing(exact=(112, 112))
    assert Preprocessing(exact=(256, 256), crop=(224, 224)).resized(112).exact == (128, 128)
    with pytest.raises(EncoderError, match="square"):
        Preprocessing(shortest=256, crop=(224, 100)).resized(112)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 30}}, "size"),
        ({"do_center_crop": False, "size": {"shortest_edge": 32}}, "crop"),
        ({"image_mean": [0.5]}, "three values"),
        ({"image_std": [0, 0, 0]}, "std"),
        ({"image_mean": None}, "does not read"),
        ({"size": {"height": 0, "width": 3}, "do_center_crop": False}, "at least 1"),
        ({"resample": 77}, "Resampling"),
    ],
)
def test_settings_that_are_not_supported_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(EncoderError, match=says):
        ours("clip", **settings)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_decoded_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(EncoderError, match="uint8"):
        ours("clip")([image])
