"""Heads of stacked side networks, but text heads, with the side encoder's final norm folded in. In float32."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.errors import InputsError
from ladder.side.attention_head import AttentionHead, attended, attention_features, texts_of
from ladder.side.network import MlpHead, SideNetwork, last_of_real, mean_of_real
from ladder.side.pairs import NO_PAIRS, pair_features, pair_means
from ladder.stacked.layout import norm_of


@dataclass(frozen=True, slots=True)
class StackedLinear:
    """A linear head on the mean of the side encoder's real tokens and, with `words`, of the backbone's embeddings."""

    weight: Tensor
    """(outputs, d)."""
    bias: Tensor
    words: Tensor | None
    """(outputs, D)."""

    def read(self, memory: Tensor, mask: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Compute the outputs (B, outputs) for a memory (B, S, d) without its norm's weight."""
        return self.of_mean(mean_of_real(memory, mask))

    def of_mean(self, mean: Tensor) -> Tensor:
        """Compute the outputs (B, outputs) for the mean (B, d) in float32."""
        return F.linear(mean, self.weight, self.bias)

    def of_tokens(self, memory: Tensor) -> Tensor:
        """Compute the outputs (B, S, outputs) of every token of a memory (B, S, d) without its norm's weight."""
        return F.linear(memory.float(), self.weight, self.bias)

    def of_words(self, mean: Tensor) -> Tensor | int:
        """Compute what is added for the mean embeddings (B, D) in float32."""
        return 0 if self.words is None else F.linear(mean, self.words)

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        words = None if self.words is None else self.words.to(device)
        return type(self)(self.weight.to(device), self.bias.to(device), words)

    @property
    def bytes(self) -> int:
        """Bytes of its weights."""
        return sum(weight.nbytes for weight in (self.weight, self.bias, self.words) if weight is not None)


@dataclass(frozen=True, slots=True)
class StackedPair:
    """A linear head on the two texts of a pair; see `ladder.side.pairs`."""

    norm: Tensor
    """(d,) the final norm's weight, which cannot be folded into a head that reads products."""
    weight: Tensor
    """(outputs, 4 d)."""
    bias: Tensor

    def read(self, memory: Tensor, mask: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Compute the outputs (B, outputs) for a memory (B, S, d) without its norm's weight.

        Raises:
            InputsError: no pairs.
        """
        if pairs is None:
            raise InputsError(NO_PAIRS)
        return F.linear(pair_features(pair_means(memory, pairs) * self.norm), self.weight, self.bias)

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        return type(self)(self.norm.to(device), self.weight.to(device), self.bias.to(device))

    @property
    def bytes(self) -> int:
        """Bytes of its weights."""
        return sum(weight.nbytes for weight in (self.norm, self.weight, self.bias))


@dataclass(frozen=True, slots=True)
class StackedAttention:
    """An attention head on one text or on the two of a pair; see `ladder.side.attention_head`."""

    queries: Tensor
    """(queries, d)."""
    norm: Tensor
    """(d,) the final norm's weight, by which what the queries find is multiplied."""
    weight: Tensor
    """(outputs, queries * d) or, for a pair, (outputs, 4 * queries * d)."""
    bias: Tensor
    pair: bool

    def read(self, memory: Tensor, mask: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Compute the outputs (B, outputs) for a memory (B, S, d) without its norm's weight.

        Raises:
            InputsError: of a pair, and no pairs.
        """
        inside = texts_of(self.pair, memory.shape[1], mask, pairs)
        memory = memory.float()
        found = attended(memory, F.linear(memory, self.queries), inside) * self.norm
        return F.linear(attention_features(found, pair=self.pair), self.weight, self.bias)

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        queries, norm = self.queries.to(device), self.norm.to(device)
        return type(self)(queries, norm, self.weight.to(device), self.bias.to(device), self.pair)

    @property
    def bytes(self) -> int:
        """Bytes of its weights."""
        return sum(weight.nbytes for weight in (self.queries, self.norm, self.weight, self.bias))


@dataclass(frozen=True, slots=True)
class StackedMlp:
    """An mlp head on the last real token of the side encoder, upsampled."""

    upsample: Tensor
    """(D, d)."""
    bias: Tensor
    head: MlpHead

    def read(self, memory: Tensor, mask: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Compute the outputs (B, outputs) for a memory (B, S, d) without its norm's weight."""
        return self.head(F.linear(last_of_real(memory, mask).float(), self.upsample, self.bias))

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        return type(self)(self.upsample.to(device), self.bias.to(device), self.head.to(device))

    @property
    def bytes(self) -> int:
        """Bytes of its weights."""
        return sum(weight.nbytes for weight in (self.upsample, self.bias, *self.head.parameters()))


Head = StackedLinear | StackedPair | StackedAttention | StackedMlp


@torch.no_grad()
def head_of(side: SideNetwork) -> Head | None:
    """Copy `side`'s head; None for a text head, which is the backbone's."""
    if side.config.has_decoder:
        return None
    norm = norm_of(side.encoder.final_norm)
    head = side.head
    if isinstance(head, MlpHead):
        copy = MlpHead(head.dense.in_features, head.out.out_features, 0.0)
        copy.load_state_dict(head.state_dict())
        upsample = side.upsample.weight.float() * norm
        return StackedMlp(upsample, _bias(side.upsample), copy.eval().requires_grad_(False))
    if isinstance(head, AttentionHead):
        queries, weight = head.queries.weight.float() * norm, head.out.weight.detach().float().clone()
        return StackedAttention(queries, norm, weight, _bias(head.out), side.config.pair)
    if side.config.pair:
        return StackedPair(norm, head.weight.detach().float().clone(), _bias(head))
    words = side.words.weight.detach().float().clone() if side.config.words else None
    return StackedLinear(head.weight.float() * norm, _bias(head), words)


def _bias(linear: nn.Linear) -> Tensor:
    bias = linear.bias
    return linear.weight.new_zeros(linear.out_features).float() if bias is None else bias.detach().float().clone()
