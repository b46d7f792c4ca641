"""A grid of features to fewer tokens, and the boxes that CLIP-T5 takes with them. LST, arXiv:2206.06522."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vision.errors import VisionError

PAPER_GRID = (6, 6)
"""36 tokens an image."""


def pool_grid(
    features: Tensor,
    grid: tuple[int, int],
    to: tuple[int, int] = PAPER_GRID,
    *,
    kind: Literal["max", "average"] = "max",
) -> Tensor:
    """Pool a grid of tokens adaptively, as torch does. A grid that has the size already is returned as it is.

    Args:
        features: (rows, tokens, width), the tokens row by row from the top left.
        grid: the tokens' rows and columns.
        to: rows and columns of the result; more than `grid` has repeats tokens.
        kind: max is what the LST authors' code does to CLIP's grid.

    Returns:
        (rows, to[0] * to[1], width).
    Raises:
        VisionError: the tokens do not make such a grid.
    """
    if features.ndim != 3 or features.shape[1] != grid[0] * grid[1]:
        raise VisionError(f"features of shape {tuple(features.shape)} are no grid of {grid[0]} x {grid[1]} tokens")
    if min(to) < 1:
        raise VisionError(f"a grid has at least 1 x 1 tokens, got {to[0]} x {to[1]}")
    if grid == to:
        return features
    pool = functional.adaptive_max_pool2d if kind == "max" else functional.adaptive_avg_pool2d
    picture = features.transpose(1, 2).unflatten(2, grid)
    return pool(picture, to).flatten(2).transpose(1, 2).contiguous()


def grid_boxes(rows: int, grid: tuple[int, int] = PAPER_GRID, *, kind: Literal["zero", "cells"] = "zero") -> Tensor:
    """Return the boxes of a grid's tokens.

    Args:
        rows: images.
        grid: rows and columns of tokens.
        kind: zero is what the LST authors give CLIP's grid, which has no boxes; cells are the tokens' places.

    Returns:
        (rows, tokens, 4) float32: left, top, right and bottom, of 0 to 1.
    """
    down, across = grid
    if kind == "zero":
        return torch.zeros(rows, down * across, 4)
    top = torch.arange(down).repeat_interleave(across)
    left = torch.arange(across).repeat(down)
    corners = torch.stack([left / across, top / down, (left + 1) / across, (top + 1) / down], dim=1)
    return corners.expand(rows, -1, -1).contiguous()
