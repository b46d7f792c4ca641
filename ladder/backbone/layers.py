"""Parts of backbones and, narrower, of side networks: norm, attention, feed-forward, T5's block and relative bias.

A cache is an argument, never an attribute. As in T5, attention is unscaled and no projection has a bias; a shape may
say otherwise.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.backbone.kv_cache import CrossKV, KeyValues
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
    """In every projection."""
    scale: float = 1.0
    """Of attention's scores."""
    activation: str = "relu"
    """relu or gelu, of a feed-forward that is not gated."""


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias; computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        scale = torch.rsqrt(hidden.float().pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * (hidden * scale).to(self.weight.dtype)


def fused_linear(hidden: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each linear layer makes of `hidden`. Layers that round it to whole numbers first
    (`ladder.backbone.quantize`) share that work."""
    prepare: Any = getattr(layers[0], "prepare", None)
    if prepare is None or (hidden.requires_grad and torch.is_grad_enabled()):
        return [layer(hidden) for layer in layers]
    given, rounding = prepare(hidden), cast("Sequence[Any]", layers)
    return [layer.multiply(*given, hidden.dtype) for layer in rounding]


def gelu_tanh(hidden: Tensor) -> Tensor:
    """GELU in tanh's approximation, as a sigmoid: 0.5 * (1 + tanh(u)) is sigmoid(2 u), for which torch's float32 code
    on CPUs takes half the time. With gradients, and elsewhere, torch's own."""
    if torch.is_grad_enabled() or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return F.gelu(hidden, approximate="tanh")
    twice = 2 * math.sqrt(2 / math.pi)
    return hidden.square().mul_(0.044715 * twice).add_(twice).mul_(hidden).sigmoid_().mul_(hidden)


def _matrix(layer: Any) -> Tensor:
    """(out, in): a linear layer's weight, widened where it is quantised."""
    return layer.weight if isinstance(layer, nn.Linear) else layer.full_weight()


def absorbs_projection(queries: int, tokens: int, head_width: int) -> bool:
    """Whether so few queries read so many tokens that making keys and values of them costs more than it saves."""
    return queries * (head_width + tokens) < tokens * head_width


class Attention(nn.Module):
    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        inner = shape.heads * shape.head_width
        self.heads, self.dropout, self.scale = shape.heads, shape.dropout, shape.scale
        self.head_width = shape.head_width
        self.q = nn.Linear(shape.width, inner, bias=shape.bias)
        self.k = nn.Linear(shape.width, inner, bias=shape.bias)
        self.v = nn.Linear(shape.width, inner, bias=shape.bias)
        self.o = nn.Linear(inner, shape.width, bias=shape.bias)

    def forward(self, hidden: Tensor, bias: Tensor | Spans, cache: KeyValues | None) -> Tensor:
        """Self-attention.

        Args:
            hidden: (B, T, width), the new tokens; with `Spans` (1, N, width), those of all parts.
            bias: added to the scores, broadcast to (B, H, T, all tokens).
            cache: earlier tokens' keys and values, extended in place.
        """
        projected = fused_linear(hidden, self.q, self.k, self.v)
        if isinstance(bias, Spans):
            return self.o(bias.attend(self._mix_projected, *projected))
        query, keys, values = map(self._split, projected)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        return self._attend(query, keys, values, bias)

    def cross(self, hidden: Tensor, memory: Tensor, bias: Tensor, cache: KeyValues | None) -> Tensor:
        """Attention to `memory` (B, S, width), whose keys and values are computed once a cache."""
        query = self._split(self.q(hidden))
        if cache is None and self._is_brief(query.shape[2], memory.shape[1]):
            return self._attend_absorbed(query, memory, bias)
        if cache is None:
            return self._attend(query, *self.read(memory), bias)
        if cache.keys is None or cache.values is None:
            cache.extend(*self.read(memory))
        assert cache.keys is not None
        assert cache.values is not None
        return self._attend(query, cache.keys, cache.values, bias)

    def as_read(self, memory: Tensor) -> Tensor:
        """`memory` (B, S, width) as the keys' and values' products see it, the same for all blocks of a kind: rounded,
        where they round. Rounded again it stays what it is."""
        rounded: Any = getattr(self.k, "rounded", None)
        return memory if rounded is None or (memory.requires_grad and torch.is_grad_enabled()) else rounded(memory)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of `memory` (B, S, width), each (B, H, S, head_width)."""
        keys, values = fused_linear(memory, self.k, self.v)
        return self._split(keys), self._split(values)

    def _is_brief(self, queries: int, tokens: int) -> bool:
        # With gradients keys and values are always made: what is learned must not hang on a batch's longest target.
        plain = self.k.bias is None and not torch.is_grad_enabled() and not (self.training and self.dropout)
        return plain and absorbs_projection(queries, tokens, self.head_width)

    def _attend_absorbed(self, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """As `_attend` to the keys and values of `memory` (B, S, width), without them: queries go through the keys'
        matrix instead, and what is mixed of the memory through the values'. q (K m) is (q K) m. Memory is taken as it
        is: see `as_read`."""
        rows, heads, queries, width = query.shape
        asked = self._by_head(query, _matrix(self.k).unflatten(0, (heads, width)).to(query.dtype))
        scores = torch.matmul(asked, memory.transpose(1, 2)).view(rows, heads, queries, -1)
        shares = torch.softmax((scores * self.scale + bias).float(), -1).to(memory.dtype).flatten(1, 2)
        mixed = torch.matmul(shares, memory).view(rows, heads, queries, -1)
        values = _matrix(self.v).unflatten(0, (heads, width)).to(query.dtype)
        said = self._by_head(mixed, values.transpose(1, 2)).view(rows, heads, queries, width)
        return self.o(said.transpose(1, 2).flatten(2))

    def _by_head(self, given: Tensor, matrices: Tensor) -> Tensor:
        """(B, H, T, in) by each head's own (H, in, out): (B, H * T, out)."""
        rows, heads, queries, _ = given.shape
        found = torch.bmm(given.transpose(0, 1).flatten(1, 2), matrices)
        return found.view(heads, rows, queries, -1).transpose(0, 1).flatten(1, 2)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return self.o(self._mix(query, keys, values, bias))

    def _mix(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """(B, H, T, head_width) each to (B, T, H * head_width)."""
        dropout = self.dropout if self.training else 0.0
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
        self.gated, self.dropout = shape.gated, shape.dropout
        self.activation = F.gelu if shape.activation == "gelu" else F.relu
        if shape.gated:
            self.wi_0 = nn.Linear(shape.width, shape.hidden, bias=shape.bias)
            self.wi_1 = nn.Linear(shape.width, shape.hidden, bias=shape.bias)
        else:
            self.wi = nn.Linear(shape.width, shape.hidden, bias=shape.bias)
        self.wo = nn.Linear(shape.hidden, shape.width, bias=shape.bias)

    def forward(self, hidden: Tensor) -> Tensor:
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
        own: KeyValues | None = None,
        cross: KeyValues | None = None,
    ) -> Tensor:
        """(B, T, width) in and out. `memory` (B, S, width) and its bias are a decoder's."""
        hidden = hidden + self._drop(self.attention(self.attention_norm(hidden), bias, own))
        if memory is not None and memory_bias is not None:
            hidden = hidden + self._drop(
                self.cross_attention.cross(self.cross_norm(hidden), memory, memory_bias, cross)
            )
        return hidden + self._drop(self.feed_forward(self.feed_norm(hidden)))

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.dropout, self.training)


def cross_kv(blocks: Iterable[nn.Module], memory: Tensor) -> CrossKV:
    """What decoder blocks (`Block`s) read of `memory` (B, S, width)."""
    return [block.cross_attention.read(memory) for block in blocks if isinstance(block, Block)]


def as_read(blocks: Iterable[nn.Module], memory: Tensor) -> Tensor:
    """`Attention.as_read` of what all decoder blocks (`Block`s) read: done once for them."""
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
    """In the place of a `RelativeBias`, for a stack that has none."""

    def forward(self, queries: int, keys: int) -> int:
        return 0


class RelativeBias(nn.Module):
    """T5's learned bias per bucket of distance and per head."""

    def __init__(self, buckets: int, max_distance: int, heads: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional
        self.weight = nn.Parameter(torch.zeros(buckets, heads))

    def forward(self, queries: int, keys: int) -> Tensor:
        """(1, H, queries, keys) for the last `queries` of `keys` positions."""
        positions = torch.arange(keys, device=self.weight.device)
        distance = positions[None, :] - positions[keys - queries :, None]
        buckets = relative_bucket(distance, self.buckets, self.max_distance, self.bidirectional)
        return self.weight[buckets].permute(2, 0, 1)[None].contiguous()  # fused attention wants the last stride to be 1


def relative_bucket(distance: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Bucket of key position minus query position: exact when near, logarithmic up to `max_distance`."""
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
    """(1, 1, queries, keys): each of the last `queries` positions sees itself and what is before it."""
    ahead = torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill(ahead, torch.finfo(dtype).min)[None, None]
