"""How a side network becomes one row of numbers, so that many of one shape can be computed as one.

Differences that do not change the arithmetic are folded away. Gates of every kind become a `keep` for each channel and
a scaled downsample. Norms' weights go into the matrix that follows. q, k and v become one matrix, as do both halves of
a gated feed-forward, all rungs' keys and values of the memory, and v and o for a decoder's first token. Equal to the
module but for rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn

from ladder.backbone.families.t5 import BiasedBlock
from ladder.backbone.layers import Block, RelativeBias, RMSNorm
from ladder.config import BackboneConfig, TapNorm, VisualConfig
from ladder.side.network import Rung, SideNetwork, SideStack, side_shape
from ladder.side.visual import BOX, VisualEmbedding

ALIGNED = 16
"""Numbers: every part begins at a multiple of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackShape:
    """What side networks must have in common to be computed as one."""

    tap_width: int
    width: int
    heads: int
    head_width: int
    hidden: int
    gated: bool
    epsilon: float
    encoder_layers: tuple[int, ...]
    decoder_layers: tuple[int, ...] | None
    """None: no side decoder."""
    mix_after: bool
    own_biases: bool
    """Each rung has a relative bias, instead of each stack."""
    buckets: int
    max_distance: int
    tap_norm: TapNorm = "none"
    visual: VisualConfig | None = None

    @property
    def inner(self) -> int:
        """Width of all attention heads."""
        return self.heads * self.head_width

    def layers(self, stack: str) -> tuple[int, ...]:
        """The backbone layers of a stack's rungs; `stack`: encoder or decoder."""
        return self.encoder_layers if stack == "encoder" else self.decoder_layers or ()


@dataclass(frozen=True, slots=True)
class Part:
    """The position of a parameter in a row of numbers."""

    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One past its last number."""
        return self.start + prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a row, by name; vectors first. Made by `layout_of`."""

    parts: dict[str, Part]
    vectors: int
    """Numbers that the vectors take, at the beginning of the row."""
    size: int
    """Numbers in all."""


def shape_of(side: SideNetwork, backbone: BackboneConfig) -> StackShape | None:
    """Find a side network's shape; None where it cannot be stacked: other blocks than T5's, or merge_last."""
    config = side.config
    shape = side_shape(config, backbone)
    assert isinstance(config.encoder_layers, tuple)
    assert isinstance(config.decoder_layers, tuple)
    stacks = [side.encoder, *([side.decoder] if config.has_decoder else [])]
    blocks = {type(rung.block) for stack in stacks for rung in _rungs(stack)}
    norms = {type(stack.final_norm) for stack in stacks}
    plain = shape.scale == 1 and not shape.bias and shape.activation == "relu"
    if config.merge_last or not plain or norms != {RMSNorm} or not (blocks <= {Block} or blocks == {BiasedBlock}):
        return None
    return StackShape(
        tap_width=backbone.d_model,
        width=shape.width,
        heads=shape.heads,
        head_width=shape.head_width,
        hidden=shape.hidden,
        gated=shape.gated,
        epsilon=shape.epsilon,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers if config.has_decoder else None,
        mix_after=config.mix_after,
        own_biases=BiasedBlock in blocks,
        buckets=backbone.relative_attention_num_buckets,
        max_distance=backbone.relative_attention_max_distance,
        tap_norm=config.tap_norm,
        visual=config.visual,
    )


@lru_cache(maxsize=256)
def layout_of(shape: StackShape) -> Layout:
    """Lay out the parameters of a shape."""
    parts = {}
    start = vectors = 0
    for name, size in sorted(_parts(shape), key=lambda part: len(part[1]) > 1):  # vectors first
        parts[name] = Part(start, size)
        start += -(-prod(size) // ALIGNED) * ALIGNED
        vectors = start if len(size) == 1 else vectors
    return Layout(parts, vectors, start)


def _parts(shape: StackShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, hidden = shape.width, shape.inner, shape.hidden * (2 if shape.gated else 1)
    relative = (shape.heads, shape.buckets)
    for stack in ("encoder", "decoder") if shape.decoder_layers is not None else ("encoder",):
        yield f"{stack}.start.bias", (width,)
        yield f"{stack}.start", (shape.tap_width, width)
        if shape.layers(stack) and not shape.own_biases:
            yield f"{stack}.relative", relative
        for index in range(len(shape.layers(stack))):
            name = f"{stack}.{index}"
            yield f"{name}.keep", (width,)
            yield f"{name}.bias", (width,)
            yield f"{name}.down", (shape.tap_width, width)
            yield f"{name}.qkv", (width, 3 * inner)
            yield f"{name}.o", (inner, width)
            if stack == "decoder":
                yield f"{name}.vo", (width, width)
                yield f"{name}.cross.q", (width, inner)
                yield f"{name}.cross.o", (inner, width)
            yield f"{name}.wi", (width, hidden)
            yield f"{name}.wo", (shape.hidden, width)
            if shape.own_biases:
                yield f"{name}.relative", relative
    if shape.visual is not None:
        yield "visual.features.bias", (shape.tap_width,)
        yield "visual.boxes.bias", (shape.tap_width,)
        yield "visual.features", (shape.visual.features, shape.tap_width)
        yield "visual.boxes", (BOX, shape.tap_width)
        yield "visual.features.start", (shape.tap_width, width)
        yield "visual.boxes.start", (shape.tap_width, width)
        yield "visual.numbers", (shape.visual.images, width)
        yield "visual.positions", (shape.visual.positions, width)
    if shape.decoder_layers is not None:
        yield "decoder.memory", (width, 2 * inner * len(shape.decoder_layers))
        yield "upsample.bias", (shape.tap_width,)
        yield "upsample", (width, shape.tap_width)


@torch.no_grad()
def fold(side: SideNetwork, shape: StackShape) -> Tensor:
    """Fold `side`'s weights into a row as `layout_of(shape)` says, (numbers,) in float32, on its device."""
    layout = layout_of(shape)
    folded = dict(_folded(side))
    row = next(side.parameters()).new_zeros(layout.size, dtype=torch.float32)
    for name, part in layout.parts.items():
        row[part.start : part.stop].view(part.shape).copy_(folded[name])
    return row


def _folded(side: SideNetwork) -> Iterator[tuple[str, Tensor]]:
    yield from _stack("encoder", side.encoder)
    if side.config.visual is not None:
        yield from _visual(side.visual, _matrix(side.encoder.first_downsample))
    if not side.config.has_decoder:
        return
    yield from _stack("decoder", side.decoder)
    memory_norm = norm_of(side.encoder.final_norm)
    attentions = [_block(rung).cross_attention for rung in _rungs(side.decoder)]
    projections = [_matrix(linear, memory_norm) for attention in attentions for linear in (attention.k, attention.v)]
    yield "decoder.memory", torch.cat(projections, 1) if projections else memory_norm.new_zeros(len(memory_norm), 0)
    yield "upsample", _matrix(side.upsample, norm_of(side.decoder.final_norm))
    yield "upsample.bias", _bias(side.upsample)


def _stack(name: str, stack: SideStack) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.start", _matrix(stack.first_downsample)
    yield f"{name}.start.bias", _bias(stack.first_downsample)
    if stack.layers and isinstance(stack.relative_bias, RelativeBias):
        yield f"{name}.relative", stack.relative_bias.weight.float().T
    for index, rung in enumerate(_rungs(stack)):
        for part, tensor in _rung(rung):
            yield f"{name}.{index}.{part}", tensor


def _visual(visual: VisualEmbedding, start: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What embeds images, with the downsample `start` (D, d) that follows in what is added up behind the norms."""
    for name, linear, norm in (
        ("features", visual.features, visual.features_norm),
        ("boxes", visual.boxes, visual.boxes_norm),
    ):
        yield f"visual.{name}", _matrix(linear)
        yield f"visual.{name}.bias", _bias(linear)
        yield f"visual.{name}.start", norm_of(norm)[:, None] * start
    yield "visual.numbers", visual.numbers.float() @ start
    yield "visual.positions", visual.positions.float().flip(0) @ start


def _rung(rung: Rung) -> Iterator[tuple[str, Tensor]]:
    block = _block(rung)
    keep, take = gate_of(rung)
    yield "keep", keep
    yield "down", _matrix(rung.downsample) * take
    yield "bias", _bias(rung.downsample) * take
    norm = norm_of(block.attention_norm)
    attention = block.attention
    feed = block.feed_forward
    yield "qkv", torch.cat([_matrix(linear, norm) for linear in (attention.q, attention.k, attention.v)], 1)
    yield "o", _matrix(attention.o)
    if hasattr(block, "cross_attention"):
        yield "vo", _matrix(attention.v, norm) @ _matrix(attention.o)  # attention of one token, whose share is 1
        yield "cross.q", _matrix(block.cross_attention.q, norm_of(block.cross_norm))
        yield "cross.o", _matrix(block.cross_attention.o)
    into = (feed.wi_0, feed.wi_1) if feed.gated else (feed.wi,)
    yield "wi", torch.cat([_matrix(linear, norm_of(block.feed_norm)) for linear in into], 1)
    yield "wo", _matrix(feed.wo)
    if isinstance(block, BiasedBlock):
        yield "relative", block.relative_bias.weight.float().T


def gate_of(rung: Rung) -> tuple[Tensor, Tensor]:
    """The factors of the side state and of the downsampled tap, (d,) each, in float32."""
    ones = torch.ones(rung.downsample.out_features, device=rung.downsample.weight.device)
    if rung.kind == "none":
        return ones, ones
    if rung.kind == "one":
        return ones, ones * 0
    keep = torch.sigmoid(rung.gate_logit.float() / rung.temperature) * ones
    return keep, 1 - keep


def _matrix(linear: nn.Linear, norm: Tensor | None = None) -> Tensor:
    """(in, out) in float32, after a norm's weight (in,)."""
    weight = linear.weight.float().T
    return weight if norm is None else norm[:, None] * weight


def _bias(linear: nn.Linear) -> Tensor:
    return torch.zeros(linear.out_features, device=linear.weight.device) if linear.bias is None else linear.bias.float()


def norm_of(norm: nn.Module) -> Tensor:
    """The factor, for each channel, of a state that is divided by its length."""
    assert isinstance(norm, RMSNorm)
    return norm.weight.float() * len(norm.weight) ** 0.5


def _block(rung: Rung) -> Block:
    assert isinstance(rung.block, Block)
    return rung.block


def _rungs(stack: SideStack) -> list[Rung]:
    return [rung for rung in stack.rungs if isinstance(rung, Rung)]
