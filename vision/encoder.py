"""A frozen vision encoder: images in, a grid of features out. Knows no files of images, tasks or versions."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from vision.errors import EncoderError
from vision.preprocessing import Preprocessing


class VisionEncoder(nn.Module):
    """A frozen encoder of any family. `load_encoder` makes it.

    Args:
        tower: computes (rows, 3, height, width) to (rows, width, rows of tokens, columns of tokens).
        preprocessing: how images become the tower's input.
        name: for people.
        fingerprint: names weights, settings, layer and preprocessing; equal fingerprints give equal features.

    Raises:
        EncoderError: the tower takes no images of the preprocessing's size.
    """

    def __init__(self, tower: nn.Module, preprocessing: Preprocessing, *, name: str, fingerprint: str) -> None:
        super().__init__()
        self.tower = tower
        self.preprocessing = preprocessing
        self.name = name
        self.fingerprint = fingerprint
        self.requires_grad_(False)
        self.eval()
        height, width = preprocessing.size
        example = next(tower.parameters())
        blank = torch.zeros(1, 3, height, width, device=example.device, dtype=example.dtype)
        try:
            with torch.no_grad():
                _, self.width, rows, columns = tower(blank).shape
        except (AssertionError, RuntimeError, ValueError) as error:
            raise EncoderError(f"{name} does not take images of {height} x {width} pixels: {error}") from None
        self.grid = (rows, columns)

    @property
    def tokens(self) -> int:
        """Tokens of an image's grid."""
        return self.grid[0] * self.grid[1]

    @property
    def edge(self) -> int:
        """Pixels that an image's shorter edge needs, for `decode_image`."""
        return self.preprocessing.edge

    def preprocess(self, images: Sequence[np.ndarray]) -> Tensor:
        """Prepare images, each (height, width, 3) uint8, on the CPU: (images, 3, height, width) float32."""
        return self.preprocessing(images)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode prepared images, on the encoder's device.

        Args:
            pixels: (rows, 3, height, width), as `preprocess` makes them.

        Returns:
            (rows, tokens, width) float32, the tokens row by row from the top left; no class token.
        """
        example = next(self.tower.parameters())
        if pixels.shape[0] == 0:
            return torch.empty(0, self.tokens, self.width, device=example.device)
        grid = self.tower(pixels.to(device=example.device, dtype=example.dtype))
        return grid.flatten(2).transpose(1, 2).float().contiguous()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a parent's train() must not wake dropout, or move a batch norm's statistics."""
        return super().train(False)
