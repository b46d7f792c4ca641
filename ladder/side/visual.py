"""How a side network reads images: the tokens of each image, embedded at the backbone's width, after those of the text.

As CLIP-T5's visual embedding in the LST authors' code: features, boxes, the image's number and the token's position in
its image, each embedded and added up.
"""

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.backbone.images import Images
from ladder.backbone.layers import RMSNorm
from ladder.backbone.model import Taps
from ladder.config import BackboneConfig, VisualConfig
from ladder.errors import InputsError

BOX = 5
"""Numbers of a box: its four edges and its area."""


class VisualEmbedding(nn.Module):
    """Embeds images as tokens of the backbone's width."""

    positions: Tensor
    """(positions, D), never trained. The last row is that of an image's first token, as in the authors' vocabulary."""

    def __init__(self, config: VisualConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.features = nn.Linear(config.features, backbone.d_model)
        self.features_norm = RMSNorm(backbone.d_model, backbone.layer_norm_epsilon)
        self.boxes = nn.Linear(BOX, backbone.d_model)
        self.boxes_norm = RMSNorm(backbone.d_model, backbone.layer_norm_epsilon)
        self.numbers = nn.Parameter(torch.zeros(config.images, backbone.d_model))
        """One embedding for each image of an input, by its number."""
        self.register_buffer("positions", torch.zeros(config.positions, backbone.d_model))

    def forward(self, images: Images) -> Tensor:
        """Return the embedded tokens (B, I * tokens, D), those of a row's first image first.

        Raises:
            InputsError: images that this network cannot read; see `pooled`.
        """
        features, boxes = pooled(images, self.config)
        count = images.mask.shape[1]
        tokens = features.shape[1] // count
        visual = self.features_norm(self.features(features.to(self.features.weight.dtype)))
        visual = visual + self.boxes_norm(self.boxes(boxes.to(visual.dtype)))
        visual = visual + self.numbers[:count].repeat_interleave(tokens, 0)
        return visual + self.positions.flip(0)[:tokens].repeat(count, 1)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw random weights as the LST authors do: torch's own for projections, normal for embeddings."""
        for linear in (self.features, self.boxes):
            start_linear(linear, generator)
        for norm in (self.features_norm, self.boxes_norm):
            norm.weight.fill_(1)
        for embedding in (self.numbers, self.positions):
            embedding.copy_(torch.empty(embedding.shape).normal_(generator=generator))


@torch.no_grad()
def start_linear(linear: nn.Linear, generator: torch.Generator | None) -> None:
    """Draw a projection's weights as torch does: uniform within the inverse square root of its inputs."""
    most = linear.in_features**-0.5
    for parameter in linear.parameters():
        parameter.copy_(torch.empty(parameter.shape).uniform_(-most, most, generator=generator))


def images_of(taps: Taps) -> Images:
    """Return the images of a batch.

    Raises:
        InputsError: there are none.
    """
    if taps.images is None:
        raise InputsError("this side network reads images besides the text: give each row its images")
    return taps.images


def pooled(images: Images, config: VisualConfig) -> tuple[Tensor, Tensor]:
    """Max-pool each image's grid to the tokens that a side network reads.

    Returns:
        features (B, I * tokens, F) and boxes (B, I * tokens, 5), with their areas. Boxes are not pooled: as in the LST
        authors' code, an image has those of its first tokens.

    Raises:
        InputsError: features of another width, more images than the network knows, or a grid that is not square, has
            too few tokens, or has more than the network has positions.
    """
    features = images.features
    _, count, cells, width = features.shape
    tokens = config.tokens or cells
    if width != config.features:
        raise InputsError(f"images have {width} features a token, and this side network reads {config.features}")
    if count > config.images:
        raise InputsError(f"inputs have {count} images, and this side network reads at most {config.images}")
    if tokens > config.positions:
        raise InputsError(f"images have {cells} tokens, and this side network has {config.positions} positions")
    if tokens > cells or (tokens != cells and isqrt(cells) ** 2 != cells):
        raise InputsError(f"images have {cells} tokens, and a square grid of at least {tokens} is needed")
    if tokens != cells:
        grid = features.flatten(0, 1).transpose(1, 2).unflatten(2, (isqrt(cells), isqrt(cells)))
        features = F.adaptive_max_pool2d(grid, isqrt(tokens)).flatten(2).transpose(1, 2).unflatten(0, (-1, count))
    boxes = features.new_zeros(len(features), count, tokens, BOX)
    if images.boxes is not None:
        edges = images.boxes[:, :, :tokens]
        area = (edges[..., 3] - edges[..., 2]) * (edges[..., 1] - edges[..., 0])
        boxes = torch.cat([edges, area[..., None]], -1)
    return features.flatten(1, 2), boxes.flatten(1, 2)


def memory_mask(config: VisualConfig, taps: Taps) -> Tensor:
    """Return which tokens of a side encoder's state are real, (B, S) bool: the text's, then those of the images.

    Raises:
        InputsError: there are no images.
    """
    images = images_of(taps)
    tokens = config.tokens or images.features.shape[2]
    return torch.cat([taps.mask, images.mask.repeat_interleave(tokens, 1)], 1)
