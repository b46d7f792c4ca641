"""Layers of backbones and, narrower, of side networks: norm, attention, feed-forward, T5's block and relative bias.

A cache is an argument, never an attribute. By default, as in T5, attention is unscaled and no projection has a bias.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.backbone.kv_cache import CrossKV, KeyValues
from ladder.backbone.lean_attention import lean_attention
from ladder.backbone.packing import Spans


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """Widths of one block."""

    width: int
    heads: int
    head_width: int
    hidden: int
    gated: bool
    epsilon: float = 1e-6
    dropout: float = 0.0
    bias: bool = False
    """Whether every projection has a bias."""
    scale: float = 1.0
    """Factor of the attention scores."""
    activation: str = "relu"
    """relu or gelu; a gated feed-forward always uses gelu."""


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias; computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) in and out."""
        scale = torch.rsqrt(hidden.float().pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * (hidden * scale).to(self.weight.dtype)


def inverse_rms(hidden: Tensor, epsilon: float) -> Tensor:
    """Return 1 over the root mean square of each vector of (..., width): (..., 1) in float32.

    Args:
        epsilon: added to the mean square.
    """
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.rsqrt(length.square() / hidden.shape[-1] + epsilon)


def rms_normalized(hidden: Tensor, epsilon: float) -> Tensor:
    """Divide each vector of (..., width) by its root mean square; see `inverse_rms`."""
    return (hidden * inverse_rms(hidden, epsilon)).to(hidden.dtype)


def fused_linear(hidden: Tensor, *layers: nn.Module) -> list[Tensor]:
    """Apply several linear layers to the same `hidden` (..., in); one result (..., out) each.

    Layers that quantize activations (`ladder.backbone.quantize`) do so once for all.
    """
    prepare: Any = getattr(layers[0], "prepare", None)
    if prepare is None or (hidden.requires_grad and torch.is_grad_enabled()):
        return [layer(hidden) for layer in layers]
    prepared = prepare(hidden)
    return [layer.multiply(*prepared, hidden.dtype) for layer in cast("Sequence[Any]", layers)]


def gelu_tanh(hidden: Tensor) -> Tensor:
    """GELU with the tanh approximation. In float32 on a CPU without gradients it is computed as a sigmoid, in half the
    time: 0.5 * (1 + tanh(u)) equals sigmoid(2 u). Otherwise torch computes it."""
    if torch.is_grad_enabled() or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return F.gelu(hidden, approximate="tanh")
    twice = 2 * math.sqrt(2 / math.pi)
    return hidden.square().mul_(0.044715 * twice).add_(twice).mul_(hidden).sigmoid_().mul_(hidden)


def _matrix(layer: Any) -> Tensor:
    """A linear layer's weight (out, in), dequantized if it is quantized."""
    return layer.weight if isinstance(layer, nn.Linear) else layer.full_weight()


def absorbs_projection(queries: int, tokens: int, head_width: int) -> bool:
    """Whether absorbing the K and V projections into queries and outputs is cheaper than projecting every token: few
    queries that read many tokens."""
    return queries * (head_width + tokens) < tokens * head_width


def _keeps_scores(query: Tensor) -> bool:
    """Whether torch's attention of `query`, in training, would keep all scores for the backward pass: GPUs have fused
    kernels that do not."""
    learns = query.requires_grad and torch.is_grad_enabled()
    return learns and query.device.type in ("cpu", "meta") and not torch.is_autocast_enabled("cpu")


class Attention(nn.Module):
    """Multi-head self- or cross-attention."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        inner = shape.heads * shape.head_width
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.scale = shape.scale
        self.head_width = shape.head_width
        self.q = nn.Linear(shape.width, inner, bias=shape.bias)
        self.k = nn.Linear(shape.width, inner, bias=shape.bias)
        self.v = nn.Linear(shape.width, inner, bias=shape.bias)
        self.o = nn.Linear(inner, shape.width, bias=shape.bias)

    def forward(self, hidden: Tensor, bias: Tensor | Spans, cache: KeyValues | None) -> Tensor:
        """Self-attention.

        Args:
            hidden: (B, T, width), the new tokens; with `Spans`, (1, N, width), the packed tokens of all parts.
            bias: added to the scores, broadcast to (B, H, T, all tokens).
            cache: keys and values of earlier tokens, extended in place.
        Returns:
            As `hidden`.
        """
        if cache is None and hidden.shape[1] == 1 and not isinstance(bias, Spans) and not torch.is_grad_enabled():
            return self.o(self.v(hidden))  # one token sees only itself: its share is 1
        projected = fused_linear(hidden, self.q, self.k, self.v)
        if isinstance(bias, Spans):
            return self.o(bias.attend(self._mix_projected, *projected))
        query, keys, values = map(self._split, projected)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        return self._attend(query, keys, values, bias)

    def cross(self, hidden: Tensor, memory: Tensor, bias: Tensor, cache: KeyValues | None) -> Tensor:
        """Attention of `hidden` (B, T, width) to `memory` (B, S, width), projected once per cache; as `hidden`."""
        query = self._split(self.q(hidden))
        if cache is None and self._absorbs(query.shape[2], memory.shape[1]):
            return self._attend_absorbed(query, memory, bias)
        if cache is None:
            return self._attend(query, *self.read(memory), bias)
        if cache.keys is None or cache.values is None:
            cache.extend(*self.read(memory))
        assert cache.keys is not None
        assert cache.values is not None
        return self._attend(query, cache.keys, cache.values, bias)

    def as_read(self, memory: Tensor) -> Tensor:
        """Return `memory` (B, S, width) as the K and V projections read it: rounded if they quantize activations.

        Rounding it twice changes nothing. The result is the same for all blocks of one kind.
        """
        rounded: Any = getattr(self.k, "rounded", None)
        return memory if rounded is None or (memory.requires_grad and torch.is_grad_enabled()) else rounded(memory)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Project `memory` (B, S, width) to keys and values, both (B, H, S, head_width)."""
        keys, values = fused_linear(memory, self.k, self.v)
        return self._split(keys), self._split(values)

    def _absorbs(self, queries: int, tokens: int) -> bool:
        # Never with gradients: what is learned must not depend on the longest target of a batch.
        plain = self.k.bias is None and not torch.is_grad_enabled() and not (self.training and self.dropout)
        return plain and absorbs_projection(queries, tokens, self.head_width)

    def _attend_absorbed(self, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """As `_attend`, without projecting `memory` (B, S, width) to keys and values.

        The K matrix is applied to the queries, since q (K m) equals (q K) m, and the V matrix to the mixed memory. The
        memory is not rounded here: see `as_read`.
        """
        rows, heads, queries, width = query.shape
        absorbed = self._by_head(query, _matrix(self.k).unflatten(0, (heads, width)).to(query.dtype))
        scores = torch.matmul(absorbed, memory.transpose(1, 2)).view(rows, heads, queries, -1)
        shares = torch.softmax((scores * self.scale + bias).float(), -1).to(memory.dtype).flatten(1, 2)
        mixed = torch.matmul(shares, memory).view(rows, heads, queries, -1)
        values = _matrix(self.v).unflatten(0, (heads, width)).to(query.dtype)
        out = self._by_head(mixed, values.transpose(1, 2)).view(rows, heads, queries, width)
        return self.o(out.transpose(1, 2).flatten(2))

    def _by_head(self, states: Tensor, matrices: Tensor) -> Tensor:
        """Multiply states (B, H, T, in) by one matrix per head (H, in, out): (B, H * T, out)."""
        rows, heads, queries, _ = states.shape
        product = torch.bmm(states.transpose(0, 1).flatten(1, 2), matrices)
        return product.view(heads, rows, queries, -1).transpose(0, 1).flatten(1, 2)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return self.o(self._mix(query, keys, values, bias))

    def _mix(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Mix values by the scores of queries and keys, all (B, H, T, head_width): (B, T, H * head_width)."""
        dropout = self.dropout if self.training else 0.0
        if _keeps_scores(query):
            mixed = lean_attention(query, keys, values, bias, dropout=dropout, scale=self.scale)
            return mixed.transpose(1, 2).flatten(2)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        return mixed.transpose(1, 2).flatten(2)

    def _mix_projected(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return self._mix(self._split(query), self._split(keys), self._split(values), bias)

    def _split(self, projected: Tensor) -> Tensor:
        """(B, T, H * head_width) to (B, H, T, head_width)."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """ReLU or GELU, or gated GELU (T5 1.1: gelu(wi_0 x) * wi_1 x, in tanh's approximation)."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.gated = shape.gated
        self.dropout = shape.dropout
        self.activation = F.gelu if shape.activation == "gelu" else F.relu
        if shape.gated:
            self.wi_0 = nn.Linear(shape.width, shape.hidden, bias=shape.bias)
            self.wi_1 = nn.Linear(shape.width, shape.hidden, bias=shape.bias)
        else:
            self.wi = nn.Linear(shape.width, shape.hidden, bias=shape.bias)
        self.wo = nn.Linear(shape.hidden, shape.width, bias=shape.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) in and out."""
        if self.gated:
            gate, inner = fused_linear(hidden, self.wi_0, self.wi_1)
            inner = gelu_tanh(gate) * inner
        else:
            inner = self.activation(self.wi(hidden))
        return self.wo(F.dropout(inner, self.dropout, self.training))


class Block(nn.Module):
    """Pre-norm self-attention, cross-attention in a decoder, feed-forward; each added to the residual stream."""

    def __init__(self, shape: BlockShape, *, decoder: bool) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.attention_norm = RMSNorm(shape.width, shape.epsilon)
        self.attention = Attention(shape)
        if decoder:
            self.cross_norm = RMSNorm(shape.width, shape.epsilon)
            self.cross_attention = Attention(shape)
        self.feed_norm = RMSNorm(shape.width, shape.epsilon)
        self.feed_forward = FeedForward(shape)

    def forward(
        self,
        hidden: Tensor,
        bias: Tensor | Spans,
        memory: Tensor | None = None,
        memory_bias: Tensor | None = None,
        self_cache: KeyValues | None = None,
        cross_cache: KeyValues | None = None,
    ) -> Tensor:
        """(B, T, width) in and out. `memory` (B, S, width) and its bias are only for a decoder."""
        hidden = hidden + self._drop(self.attention(self.attention_norm(hidden), bias, self_cache))
        if memory is not None and memory_bias is not None:
            hidden = hidden + self._drop(
                self.cross_attention.cross(self.cross_norm(hidden), memory, memory_bias, cross_cache)
            )
        return hidden + self._drop(self.feed_forward(self.feed_norm(hidden)))

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.dropout, self.training)


def cross_kv(blocks: Iterable[nn.Module], memory: Tensor) -> CrossKV:
    """Return the cross-attention keys and values of `memory` (B, S, width), for each decoder block (`Block`)."""
    return [block.cross_attention.read(memory) for block in blocks if isinstance(block, Block)]


def as_read(blocks: Iterable[nn.Module], memory: Tensor) -> Tensor:
    """Apply `Attention.as_read` to `memory` (B, S, width) once for all decoder blocks (`Block`s)."""
    return next((block.cross_attention.as_read(memory) for block in blocks if isinstance(block, Block)), memory)


class PostNormBlock(nn.Module):
    """An encoder's self-attention and feed-forward; each added to its input, then normed (BART, BERT)."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.attention = Attention(shape)
        self.attention_norm = nn.LayerNorm(shape.width, shape.epsilon)
        self.feed_forward = FeedForward(shape)
        self.feed_norm = nn.LayerNorm(shape.width, shape.epsilon)

    def forward(self, hidden: Tensor, bias: Tensor | Spans) -> Tensor:
        """(B, S, width) in and out; `bias` (B, 1, 1, S) is the mask's."""
        hidden = self.attention_norm(hidden + self._drop(self.attention(hidden, bias, None)))
        return self.feed_norm(hidden + self._drop(self.feed_forward(hidden)))

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.dropout, self.training)


class NoBias(nn.Module):
    """Stands in for `RelativeBias` in a stack without one."""

    def forward(self, queries: int, keys: int) -> int:
        """Return 0."""
        return 0


class RelativeBias(nn.Module):
    """T5's learned bias per bucket of distance and per head."""

    def __init__(self, buckets: int, max_distance: int, heads: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.buckets = buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.zeros(buckets, heads))

    def forward(self, queries: int, keys: int) -> Tensor:
        """(1, H, queries, keys) for the last `queries` of `keys` positions."""
        positions = torch.arange(keys, device=self.weight.device)
        distance = positions[None, :] - positions[keys - queries :, None]
        buckets = relative_bucket(distance, self.buckets, self.max_distance, self.bidirectional)
        return self.weight[buckets].permute(2, 0, 1)[None].contiguous()  # fused attention wants the last stride to be 1


def relative_bucket(distance: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Return the bucket of key position minus query position: exact if near, logarithmic up to `max_distance`."""
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0) * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    scaled = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    far = (exact + scaled.long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, S) bool to (B, 1, 1, S): 0 at real tokens, the lowest number at padding."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)[
        :, None, None, :
    ]


def causal_bias(queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, 1, queries, keys): each of the last `queries` positions sees itself and earlier positions."""
    ahead = torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill(ahead, torch.finfo(dtype).min)[None, None]
