"""Side networks whose texts end at different lengths, for tests of decoding."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ladder import Backbone, SideConfig, SideNetwork, load_backbone, run_backbone
from ladder.decoding.segments import Segment
from tests import tiny

INPUTS = ((5, 6, 7, 8, 1), (9, 1), (20, 3, 3, 1))
LIMIT = 9


@cache
def make_backbone(folder: Path) -> Backbone:
    """A tiny T5 of 24 words, so that the end token is often among the likely ones."""
    return load_backbone(tiny.make_t5(folder, seed=3, vocab_size=24, num_decoder_layers=3))


def make_side(backbone: Backbone, seed: int, **shape: object) -> SideNetwork:
    torch.manual_seed(seed)
    side = SideNetwork(SideConfig(**{"head": "text", "reduction": 4} | shape), backbone.config)
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return side.eval().requires_grad_(False)


def padded(inputs: tuple[tuple[int, ...], ...] = INPUTS) -> Tensor:
    longest = max(map(len, inputs))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in inputs])


def segment(backbone: Backbone, side: SideNetwork, **settings: object) -> Segment:
    """A segment of INPUTS."""
    return Segment(side=side, taps=run_backbone(backbone, INPUTS).taps, **{"limit": LIMIT} | settings)
