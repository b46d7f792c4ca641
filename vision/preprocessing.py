"""Pixels to a model's input: resize, crop and normalise, equal to the Pillow image processors of transformers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision.errors import EncoderError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
WARP_FROM = 384
"""ResNet's processor resizes to this size and larger ones without a crop."""
STRETCH = 16
"""A resized image this many times larger than its crop is resized within the crop alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes a model's input. Exactly one of `shortest` and `exact` is set."""

    shortest: int | None = None
    """Length of the shorter edge after resizing, in pixels; the other keeps the proportions."""
    exact: tuple[int, int] | None = None
    """Height and width after resizing."""
    crop: tuple[int, int] | None = None
    """Height and width that are cut out of the middle; where the image is smaller, black surrounds it."""
    resample: int = int(Image.Resampling.BICUBIC)
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if (self.shortest is None) == (self.exact is None):
            raise EncoderError("an image is resized to its shortest edge or to an exact size; name one of the two")
        if self.exact is None and self.crop is None:
            raise EncoderError("images that keep their proportions must be cropped, so that all have one size")
        if min(self.shortest or 1, *self.size) < 1:
            raise EncoderError(f"sizes must be at least 1 pixel, got {self}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(self.std):
            raise EncoderError(f"mean and std must have three values, std none that is 0, got {self.mean}, {self.std}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        size = self.crop or self.exact
        assert size is not None
        return size

    @property
    def edge(self) -> int:
        """Pixels that an image's shorter edge needs, for `decode_image`."""
        return self.shortest or max(self.size)

    def resized(self, size: int) -> Self:
        """Return the same for an input of `size` x `size` pixels, of the same part of the image."""
        if self.exact is not None and self.crop is None:
            return replace(self, exact=(size, size))
        height, width = self.size
        if height != width:
            raise EncoderError(f"a crop of {height} x {width} has no square size; leave size out")
        factor = size / height
        if self.exact is not None:
            return replace(self, exact=tuple(round(factor * n) for n in self.exact), crop=(size, size))
        return replace(self, shortest=round(factor * (self.shortest or 0)), crop=(size, size))

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Prepare a batch.

        Args:
            images: each (height, width, 3) uint8, as `decode_image` returns it.

        Returns:
            (images, 3, height, width) float32.
        """
        if not images:
            return torch.empty(0, 3, *self.size)
        pixels = torch.stack([torch.from_numpy(self._fit(image)) for image in images]).permute(0, 3, 1, 2)
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return ((pixels.contiguous() * self.scale) - mean) / std

    def _fit(self, image: np.ndarray) -> np.ndarray:
        """Resize and crop; (height, width, 3) uint8 in and out."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise EncoderError(f"an image must be (height, width, 3) uint8, got {image.shape} {image.dtype}")
        height, width = self._resized_size(*image.shape[:2])
        crop_height, crop_width = self.size
        top = self._before(height - crop_height)
        left = self._before(width - crop_width)
        picture = Image.fromarray(image)
        if height * width > STRETCH * crop_height * crop_width and top >= 0 and left >= 0:
            # a strip of 1 x 30,000 pixels would become 224 x 6,720,000
            box = (left, top, left + crop_width, top + crop_height)
            x, y = image.shape[1] / width, image.shape[0] / height
            source = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
            return np.array(picture.resize((crop_width, crop_height), Image.Resampling(self.resample), source))
        fitted = np.array(picture.resize((width, height), Image.Resampling(self.resample)))
        if top < 0 or left < 0:
            fitted = _padded(fitted, crop_height, crop_width)
            top = (fitted.shape[0] - crop_height) // 2
            left = (fitted.shape[1] - crop_width) // 2
        return np.ascontiguousarray(fitted[top : top + crop_height, left : left + crop_width])

    @staticmethod
    def _before(spare: int) -> int:
        """How many of `spare` pixels are cut off above, or on the left."""
        return spare // 2

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.exact is not None:
            return self.exact
        assert self.shortest is not None
        long = int(self.shortest * max(height, width) / min(height, width))
        return (self.shortest, long) if height <= width else (long, self.shortest)


def _padded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Surround with black up to a crop's height and width, the odd pixel above and on the left."""
    missing = (max(0, height - image.shape[0]), max(0, width - image.shape[1]))
    before = [math.ceil(n / 2) for n in missing]
    return np.pad(image, ((before[0], missing[0] - before[0]), (before[1], missing[1] - before[1]), (0, 0)))


def read_preprocessing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Preprocessing:
    """Read the settings of a Hugging Face preprocessor_config.json.

    Args:
        values: of the file.
        defaults: the family's, for settings that the file leaves out; also `square`: a size of one number is that of
            both edges, and `crop_pct`: the size is the crop's (ResNet).

    Raises:
        EncoderError: settings that are not supported here.
    """
    settings = {**defaults, **values}
    if not settings.get("do_resize", True):
        raise EncoderError("preprocessor_config.json turns do_resize off; images of any size must become one size")
    if settings.get("do_pad"):
        raise EncoderError("preprocessor_config.json turns do_pad on, which is not supported; turn it off")
    shortest, exact = _read_size(settings["size"], square=settings.get("square", True))
    crop = _read_square(settings["crop_size"]) if settings.get("do_center_crop") else None
    if settings.get("crop_pct") and shortest:
        crop = (shortest, shortest)
        if shortest < WARP_FROM:
            shortest = int(shortest / settings["crop_pct"])
        else:
            shortest, exact = None, crop
    normalizes = settings.get("do_normalize", True)
    try:
        return Preprocessing(
            shortest=shortest,
            exact=exact,
            crop=crop,
            resample=int(Image.Resampling(settings["resample"])),
            scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
            mean=tuple(map(float, settings["image_mean"])) if normalizes else (0.0, 0.0, 0.0),
            std=tuple(map(float, settings["image_std"])) if normalizes else (1.0, 1.0, 1.0),
        )
    except EncoderError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise EncoderError(f"preprocessor_config.json has a setting that does not read: {error}") from None


def _read_size(size: Any, *, square: bool) -> tuple[int | None, tuple[int, int] | None]:
    """Return the shortest edge, or the exact height and width."""
    if isinstance(size, int):
        return (None, (size, size)) if square else (size, None)
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"]), None
    return None, _read_square(size)


def _read_square(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    wants = '{"shortest_edge": n} or {"height": n, "width": n}'
    raise EncoderError(f"preprocessor_config.json has a size {size!r}, which is not supported; use {wants}")
