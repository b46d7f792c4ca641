"""What a linear head reads of the two texts of a pair, as sentence encoders compare two sentences.

InferSent, arXiv:1705.02364: both vectors, their absolute difference and their product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ladder.backbone.model import Taps
from ladder.backbone.tokenizer import Pair
from ladder.config import SideConfig
from ladder.errors import InputsError

NO_PAIRS = "this side network reads two texts apart: say where they are (pairs)"
PARTS = 4
"""Vectors of the width of the side state that `pair_features` makes."""


def pair_means(state: Tensor, pairs: Tensor) -> Tensor:
    """Return the mean of each text's tokens in `state` (B, S, d): (B, 2, d) in float32; zeros for a text of none.

    Args:
        pairs: (B, 2, 2), see `Taps.pairs`.
    """
    inside = tokens_inside(pairs, state.shape[1])
    counts = inside.sum(-1, keepdim=True).clamp(min=1)
    return inside.float() @ state.float() / counts


def tokens_inside(pairs: Tensor, tokens: int) -> Tensor:
    """Return which of S `tokens` belong to each text of `pairs` (B, 2, 2): (B, 2, S) bool."""
    indices = torch.arange(tokens, device=pairs.device)
    return (indices >= pairs[..., :1]) & (indices < pairs[..., 1:])


def pairs_of(config: SideConfig, taps: Taps, mask: Tensor) -> Tensor | None:
    """Return what a head that reads a pair apart needs of the inputs `taps`, see `Taps.pairs`; None for other heads.

    Args:
        mask: (B, S) or (B, S + N), of the side encoder's state.
    """
    if config.pair and config.visual is not None:
        return text_and_images(mask, taps.mask.shape[1])
    return taps.pairs if config.pair else None


def text_and_images(mask: Tensor, tokens: int) -> Tensor:
    """Return the pairs (B, 2, 2) of a text and its images, as `Taps.pairs` has those of two texts.

    Args:
        mask: (B, S + N) bool, True at the real tokens of the text and of the images after it, each from its start.
        tokens: S.
    """
    counts = torch.stack([mask[:, :tokens].sum(1), mask[:, tokens:].sum(1)], 1)  # (B, 2)
    starts = torch.tensor([0, tokens], device=mask.device).expand_as(counts)
    return torch.stack([starts, starts + counts], 2)


def pair_features(means: Tensor) -> Tensor:
    """Return what a head reads of the `means` (B, 2, d): both, their absolute difference and product, (B, 4 d)."""
    first, second = means.unbind(1)
    return torch.cat([first, second, (first - second).abs(), first * second], -1)


def pair_tensor(pairs: Sequence[Pair | None], device: torch.device) -> Tensor:
    """Return the pairs of rows as a tensor (B, 2, 2).

    Raises:
        InputsError: a row has none.
    """
    if None in pairs:
        raise InputsError(NO_PAIRS)
    return torch.tensor(pairs, device=device)
