"""Estimates the cost of a side network of some shape before training: weights, arithmetic, memory.

Needs no weights: parameters, and the memory that training keeps, are counted on torch's meta device; arithmetic is a
formula that equals torch's flop counter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from ladder.backbone.images import Images
from ladder.backbone.layers import BlockShape, absorbs_projection
from ladder.backbone.model import Backbone, Taps
from ladder.config import BackboneConfig, SideConfig, VisualConfig, every_second
from ladder.side.attention_head import QUERIES
from ladder.side.known_backbones import BackboneShape
from ladder.side.network import SideNetwork, side_shape
from ladder.side.pairs import PARTS
from ladder.side.visual import BOX

NUMBERS_OF_A_WEIGHT = 4
"""Float32 numbers per weight in training: the weight, its gradient, and AdamW's two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The size of one batch."""

    tokens: int = 128
    """Tokens in each row."""
    rows: int = 32
    """Rows in the batch."""
    new_tokens: int = 1
    """Tokens that the decoder reads, for a text head."""
    images: int = 1
    """Images in each row, for a side network that reads images; no two rows share one."""
    image_tokens: int = 36
    """Tokens in the grid of each image, before a side network pools them. A side network that reads more has as many
    as it reads."""
    dtype: torch.dtype = torch.bfloat16
    """Dtype of the backbone, and of a served side network, which trains in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideCost:
    """The cost of one side network on one backbone."""

    side: SideConfig
    """Resolved."""
    parameters: int
    """Trainable weights."""
    reference_parameters: int
    """The count by the LST authors: in their code dropped layers keep a learnable gate, which is never trained."""
    backbone_parameters: int
    side_flops: int
    """For one row; a multiplication and an addition count as two. The LM head counts for the backbone."""
    backbone_flops: int
    """For one row, of the blocks that this side network needs: up to its deepest rung; for a text head all blocks, the
    decoder and the LM head."""
    training_bytes: int
    """An estimate: backbone; weights, gradients and moments in float32; taps; tensors kept for the backward pass on a
    CPU (a GPU's fused attention keeps less). The backbone has no gradients and no optimizer state."""
    serving_bytes: int
    """An estimate: backbone, this side network, and a batch's taps."""

    @property
    def share(self) -> float:
        """Share of the backbone's parameters, 0 to 1."""
        return self.parameters / self.backbone_parameters

    @property
    def flops_share(self) -> float:
        """Share of the backbone's arithmetic; 0 if the backbone needs none."""
        return self.side_flops / self.backbone_flops if self.backbone_flops else 0.0


def kept_patterns(blocks: int) -> dict[str, tuple[int, ...]]:
    """Return common choices of rungs, by name."""
    return {
        "all": tuple(range(blocks)),
        "every 2nd": every_second(blocks),
        "last half": tuple(range(blocks // 2, blocks)),
    }


class CostModel:
    """Estimates costs of side networks on one backbone; measurements are cached across estimates."""

    def __init__(self, backbone: BackboneShape, load: Load | None = None) -> None:
        self.backbone = backbone
        self.config = backbone.config
        self.load = load or Load()
        self._kept: dict[tuple[SideConfig, int, int], int] = {}

    @cached_property
    def _backbone_weights(self) -> dict[str, int]:
        with torch.device("meta"):
            return {name: parameter.numel() for name, parameter in Backbone(self.config).named_parameters()}

    @property
    def backbone_parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        named = self._backbone_weights.items()
        return sum(count for name, count in named if not (self.backbone.tied and name == "head"))

    def estimate(self, config: SideConfig) -> SideCost:
        """Estimate the cost of a side network of shape `config`.

        Raises:
            SideConfigError: the shape does not fit the backbone.
        """
        with torch.device("meta"):
            side = SideNetwork(config, self.config)
        parameters = count_parameters(side)
        visual = side.config.visual
        frozen = visual.positions * self.config.d_model if visual else 0
        itemsize = self.load.dtype.itemsize
        held = sum(self._backbone_weights.values())  # `Backbone` stores a tied head twice
        forward_bytes = held * itemsize + self._taps_bytes(side)
        return SideCost(
            side=side.config,
            parameters=parameters,
            reference_parameters=parameters + dropped_gates(side.config, self.config),
            backbone_parameters=self.backbone_parameters,
            side_flops=side_flops(side.config, self.config, self.load),
            backbone_flops=backbone_flops(side.encoder_depth, self.config, self.load),
            training_bytes=forward_bytes
            + (parameters * NUMBERS_OF_A_WEIGHT + frozen) * 4
            + self._kept_bytes(side.config),
            serving_bytes=forward_bytes + (parameters + frozen) * itemsize,
        )

    def _taps_bytes(self, side: SideNetwork) -> int:
        """Embeddings, the blocks' outputs and, if a stack runs to its end, its final state; the features of images."""
        load = self.load
        config = self.config
        depth = config.num_layers if side.encoder_depth is None else side.encoder_depth
        tokens = load.tokens * (depth + 1 + (depth == config.num_layers))
        if side.config.has_decoder:
            tokens += load.new_tokens * (config.num_decoder_layers + 2)
        numbers = tokens * config.d_model
        if side.config.visual is not None:
            numbers += load.images * grid_tokens(side.config.visual, load) * side.config.visual.features
        return load.rows * numbers * load.dtype.itemsize

    def _kept_bytes(self, config: SideConfig) -> int:
        """Memory that a step keeps for its backward pass, without weights and taps. All rungs of a stack keep the same;
        the first also keeps the relative bias."""
        bare = replace(config, encoder_layers=(), decoder_layers=())
        total = empty = self._measured(bare, 0, 0)
        if config.encoder_layers:
            one, two = self._measured(bare, 1, 0), self._measured(bare, 2, 0)
            total += one - empty + (len(config.encoder_layers) - 1) * (two - one)
        if config.decoder_layers:
            one, two = self._measured(bare, 0, 1), self._measured(bare, 0, 2)
            total += one - empty + (len(config.decoder_layers) - 1) * (two - one)
        return total

    def _measured(self, bare: SideConfig, encoder: int, decoder: int) -> int:
        """`kept_bytes` of this number of rungs."""
        key = (bare, encoder, decoder)
        if key not in self._kept:
            config = replace(bare, encoder_layers=tuple(range(encoder)), decoder_layers=tuple(range(decoder)))
            small = replace(self.config, num_layers=2, num_decoder_layers=2 if bare.has_decoder else 0)
            self._kept[key] = kept_bytes(config, small, self.load)
        return self._kept[key]


def count_parameters(side: SideNetwork) -> int:
    """Return the number of trainable weights; works on the meta device too."""
    return sum(parameter.numel() for parameter in side.parameters() if parameter.requires_grad)


def dropped_gates(side: SideConfig, backbone: BackboneConfig) -> int:
    """Return the number of gates of dropped layers, for a resolved `side`.

    The LST authors count them: their code makes a gate for every layer, and those of dropped layers get no gradient.
    Ours makes none.
    """
    if side.gate != "learnable":
        return 0
    dropped = backbone.num_layers - len(side.encoder_layers or ())
    if side.has_decoder:
        dropped += backbone.num_decoder_layers - len(side.decoder_layers or ())
    return dropped


def kept_bytes(config: SideConfig, backbone: BackboneConfig, load: Load) -> int:
    """Return the bytes that autograd keeps in one step of the side network, without weights and taps."""
    with torch.device("meta"):
        side, frozen = SideNetwork(config, backbone).train(), Backbone(backbone).to(load.dtype)
        taps, decoder_taps = _empty_taps(backbone, load, side.config.has_decoder)
        if side.config.visual is not None:
            taps = replace(taps, images=_empty_images(side.config.visual, load))
        if side.config.pair:
            taps = replace(taps, pairs=torch.zeros(len(taps.mask), 2, 2, dtype=torch.long, device=taps.mask.device))
        ours = (*side.parameters(), *side.buffers(), *frozen.parameters(), *_tensors(taps), *_tensors(decoder_taps))
        known = {_storage(tensor) for tensor in ours}
        kept: dict[int, int] = {}
        alive: list[Tensor] = []  # the id of a freed storage would be used again

        def keep(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in known:
                kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            memory = side.encode(taps)
            if side.config.has_decoder:
                out = frozen.logits(side.decode(decoder_taps, memory, side.memory_mask(taps))).flatten(0, 1)
            else:
                out = side.read_all(memory, taps)
            F.cross_entropy(out.float(), torch.zeros(len(out), dtype=torch.long))
        return sum(kept.values())


def side_flops(config: SideConfig, backbone: BackboneConfig, load: Load) -> int:
    """Return the arithmetic for one row, for a resolved `config`."""
    shape = side_shape(config, backbone)
    tokens = load.tokens
    new = load.new_tokens
    down = 2 * backbone.d_model * shape.width
    memory = tokens
    total = 0
    if config.visual is not None:
        seen = load.images * (config.visual.tokens or grid_tokens(config.visual, load))
        memory += seen
        total += 2 * seen * (config.visual.features + BOX) * backbone.d_model
    total += memory * down + len(config.encoder_layers or ()) * (tokens * down + _block(shape, memory))
    if config.has_decoder:
        rung = new * down + _block(shape, new, memory=memory)
        return total + 2 * new * down + len(config.decoder_layers or ()) * rung  # first downsample, upsample
    if config.head == "linear":
        read = shape.width * (PARTS if config.pair else 1) + config.words * backbone.d_model
        return total + 2 * read * config.outputs
    if config.head == "attention":
        texts, parts = (2, PARTS) if config.pair else (1, 1)
        return total + 2 * QUERIES * shape.width * (memory * (1 + texts) + parts * config.outputs)
    return total + down + 2 * backbone.d_model * (backbone.d_model + config.outputs)


def grid_tokens(visual: VisualConfig, load: Load) -> int:
    """Return the tokens in the grid of each image."""
    return max(load.image_tokens, visual.tokens)


def backbone_flops(depth: int | None, backbone: BackboneConfig, load: Load) -> int:
    """Return the arithmetic for one row of `depth` encoder blocks; None: all, the decoder and the LM head."""
    shape = BlockShape(
        width=backbone.d_model,
        heads=backbone.num_heads,
        head_width=backbone.d_kv,
        hidden=backbone.d_ff,
        gated=backbone.feed_forward_proj == "gated-gelu",
    )
    if depth is not None:
        return depth * _block(shape, load.tokens)
    encoder = backbone.num_layers * _block(shape, load.tokens)
    decoder = backbone.num_decoder_layers * _block(shape, load.new_tokens, memory=load.tokens)
    return encoder + decoder + 2 * load.new_tokens * backbone.d_model * backbone.vocab_size


def _block(shape: BlockShape, tokens: int, memory: int = 0) -> int:
    """Arithmetic of one block over `tokens` new tokens, with cross-attention to `memory` tokens; no cache."""
    inner = shape.heads * shape.head_width
    feed_forward = 2 * tokens * shape.width * shape.hidden * (3 if shape.gated else 2)
    total = feed_forward + _attention(shape.width, inner, tokens, tokens)
    return total + (_cross_attention(shape, tokens, memory) if memory else 0)


def _cross_attention(shape: BlockShape, queries: int, keys: int) -> int:
    inner = shape.heads * shape.head_width
    if not absorbs_projection(queries, keys, shape.head_width):
        return _attention(shape.width, inner, queries, keys)
    return 2 * 4 * queries * shape.width * inner + 2 * 2 * queries * keys * shape.heads * shape.width


def _attention(width: int, inner: int, queries: int, keys: int) -> int:
    projections = 2 * width * inner * (2 * queries + 2 * keys)
    return projections + 2 * 2 * queries * keys * inner


def _empty_taps(backbone: BackboneConfig, load: Load, has_decoder: bool) -> tuple[Taps, Taps]:
    """Encoder and decoder taps without values, on the current device; without a decoder the second is not read."""

    def make(tokens: int, blocks: int) -> Taps:
        tensors = [torch.empty(load.rows, tokens, backbone.d_model, dtype=load.dtype) for _ in range(blocks + 2)]
        mask = torch.ones(load.rows, tokens, dtype=torch.bool)
        return Taps(embeddings=tensors[0], blocks=tuple(tensors[1:-1]), mask=mask, final=tensors[-1])

    return make(load.tokens, backbone.num_layers), make(load.new_tokens, backbone.num_decoder_layers)


def _empty_images(visual: VisualConfig, load: Load) -> Images:
    """Images without values, on the current device."""
    shape = load.rows, load.images, grid_tokens(visual, load), visual.features
    return Images.of(torch.empty(shape, dtype=load.dtype))


def _tensors(taps: Taps) -> Sequence[Tensor]:
    images = None if taps.images is None else taps.images.features
    return [tensor for tensor in (taps.embeddings, *taps.blocks, taps.final, images) if tensor is not None]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
