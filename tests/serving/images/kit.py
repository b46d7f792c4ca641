"""A vision encoder whose passes a test can hold, count and break, and image files of one colour."""

import asyncio
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.config import ImageConfig
from serving.engine import EncodedImage
from serving.images import ImagePool, encoder_runner
from serving.metrics import Metrics
from tests.vision.images import saved
from vision import Preprocessing, VisionEncoder

BAD, NOT_A_NUMBER = 13, 14
"""Colours with which the tower fails, and of which it computes NaN."""


class Tower(nn.Module):
    """Features are the picture's own colours, on a grid of 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.passes: list[int] = []
        """Images of each pass, failed ones too."""
        self.room = 1000
        """Images of a pass for which there is memory."""
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()

    def forward(self, pixels: Tensor) -> Tensor:
        self.passes.append(len(pixels))
        self.entered.set()
        assert self.open.wait(10)
        colours = (pixels[:, 0, 0, 0] * 255).round().tolist()
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("no room")
        if BAD in colours:
            raise ValueError("boom")
        grid = functional.adaptive_avg_pool2d(pixels, 2) * self.weight
        grid[[colour == NOT_A_NUMBER for colour in colours]] = torch.nan
        return grid


class Decoding:
    """Counts calls of `decode_image`, and holds them on demand."""

    def __init__(self) -> None:
        self.calls = self.now = self.most = 0
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **options: Any) -> np.ndarray:
        with self._lock:
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.open.wait(10)
        try:
            return _decode(*args, **options)
        finally:
            with self._lock:
                self.now -= 1


_decode = encoder_runner.decode_image


def make_pool(**settings: Any) -> tuple[ImagePool, Tower, Metrics]:
    """A pool, its encoder's tower, which has seen no pass yet, and its metrics."""
    tower = Tower()
    plain = Preprocessing(exact=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    encoder = VisionEncoder(tower, plain, name="colours", fingerprint=f"sha256:{'c' * 64}")
    tower.passes.clear()
    tower.entered.clear()
    metrics = Metrics()
    return ImagePool(encoder, ImageConfig(vision="colours", **settings), metrics), tower, metrics


@cache
def picture(colour: int) -> bytes:
    """A PNG of one colour."""
    return saved(np.full((8, 8, 3), colour, np.uint8))


def colour_of(image: Any) -> int:
    """The colour that an encoded image's features tell."""
    assert isinstance(image, EncodedImage), image
    assert image.features.shape == (4, 3)
    return round(float(image.features[0, 0]) * 255)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for other threads."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a thread makes it true
            await asyncio.sleep(0.001)
