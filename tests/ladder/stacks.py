"""Random side networks, and their outputs one row at a time, as the reference for stacked ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ladder import Backbone, SideConfig, SideNetwork, Taps
from ladder.stacked.bank import SideBank
from ladder.stacked.network import StackedSide

OUTPUTS = {"text": 0, "linear": 3, "attention": 3, "mlp": 2}


def make_sides(backbone: Backbone, count: int, seed: int = 0, head: str = "text", **shape: object) -> list[SideNetwork]:
    """Make side networks whose gates, norms and biases all differ from their initial values."""
    config = SideConfig(**{"reduction": 4, "head": head, "outputs": OUTPUTS[head]} | shape)  # type: ignore[arg-type]
    random, made = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        side = SideNetwork(config, backbone.config).eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in side.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.2)
        made.append(side)
    return made


def stacked(bank: SideBank, sides: Sequence[SideNetwork]) -> list[StackedSide]:
    stacked_sides = [bank.add(side) for side in sides]
    assert all(isinstance(side, StackedSide) for side in stacked_sides)
    return stacked_sides  # type: ignore[return-value]


def make_inputs(rows: int, tokens: int = 9, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return token ids and mask; the first row has all tokens, the others are shorter."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 90, (rows, tokens), generator=random)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=random)
    lengths[0] = tokens
    mask = torch.arange(tokens) < lengths[:, None]
    return ids.masked_fill(~mask, 0), mask


def row_of(taps: Taps, row: int) -> Taps:
    return taps.select(torch.tensor([row]))


def tokens_of(taps: Taps, some: slice) -> Taps:
    """Return a decoder's taps of some tokens."""
    blocks = tuple(block[:, some] for block in taps.blocks)
    return Taps(embeddings=taps.embeddings[:, some], blocks=blocks, mask=taps.mask[:, some])


def one_by_one(sides: Sequence[SideNetwork], taps: Taps, decoded: Taps | None = None) -> Tensor:
    """Each row's upsampled states (B, T, D), or the output of its head, (B, outputs)."""
    outputs = []
    for row, side in enumerate(sides):
        row_taps = row_of(taps, row)
        memory = side.encode(row_taps)
        if decoded is None:
            outputs.append(side.read_all(memory, row_taps))
        else:
            outputs.append(side.decode(row_of(decoded, row), memory, row_taps.mask))
    return torch.cat(outputs)
