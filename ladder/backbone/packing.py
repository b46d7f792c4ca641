"""Remove most padding: divide a batch into parts, each with rows of similar length.

The tokens of all parts are concatenated, so each matrix multiplies once for all of them; only attention runs part by
part. A part is padded to its longest row. Side networks then read the activations in groups, which may hold the rows of
several parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PART_TOKENS = 8
"""Fixed cost of one more part, an attention call in each block, in padded tokens."""
GROUP_TOKENS = 400
"""Fixed cost of one more group, a call of the side networks and the decoder, in padded tokens of that work. Larger than
a part's because this work takes far less time per token."""
WORTH = 0.95
"""A batch is divided if its parts have at most this share of its padded tokens."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a batch."""

    rows: tuple[int, ...]
    tokens: int
    """Of the longest row."""

    @property
    def size(self) -> int:
        """Tokens, padding counted."""
        return len(self.rows) * self.tokens


@dataclass(frozen=True, slots=True)
class Division:
    """How a batch is computed: the encoder in parts, its readers in groups."""

    parts: list[Part]
    groups: list[Part]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Division":
        """Return the cheapest division of rows with these numbers of tokens."""
        return cls(divide(lengths, PART_TOKENS), divide(lengths, GROUP_TOKENS))

    @property
    def tokens(self) -> int:
        """Padded tokens that the encoder computes."""
        return sum(part.size for part in self.parts)

    @property
    def is_trivial(self) -> bool:
        """Whether the whole batch is one part and one group."""
        return len(self.parts) == len(self.groups) == 1


def divide(lengths: Sequence[int], part_cost: int) -> list[Part]:
    """Return the cheapest parts, shortest rows first; a single part if more would save less than `WORTH` asks.

    Args:
        part_cost: fixed cost of a part, in tokens.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = np.asarray(lengths)[order]
    parts = [
        Part(tuple(sorted(order[start:end].tolist())), int(ordered[end - 1]))
        for start, end in _cuts(ordered, part_cost)
    ]
    whole = Part(tuple(range(len(lengths))), int(ordered[-1]))
    return parts if sum(part.size for part in parts) <= WORTH * whole.size else [whole]


def _cuts(lengths: np.ndarray, part_cost: int) -> list[tuple[int, int]]:
    """(start, end) of the parts of rows sorted by length: the cheapest division of the first 1, 2, 3 ... rows."""
    indices = np.arange(len(lengths))
    costs = np.zeros(len(lengths) + 1)
    starts = np.zeros(len(lengths) + 1, dtype=int)
    for end in range(1, len(lengths) + 1):
        tried = costs[:end] + (end - indices[:end]) * lengths[end - 1] + part_cost
        starts[end] = tried.argmin()
        costs[end] = tried[starts[end]]
    cuts = []
    end = len(lengths)
    while end:
        cuts.append((int(starts[end]), end))
        end = cuts[-1][0]
    return cuts[::-1]


@dataclass(frozen=True, slots=True)
class Span:
    """Where a part's tokens start among all tokens, and the bias of its attention scores."""

    part: Part
    start: int
    bias: Tensor
    """Broadcast to (rows, H, tokens, tokens)."""

    def of(self, packed: Tensor) -> Tensor:
        """Return this part of packed (1, N, W) as (rows, tokens, W)."""
        return packed[0, self.start : self.start + self.part.size].view(len(self.part.rows), self.part.tokens, -1)


@dataclass(frozen=True, slots=True)
class Spans:
    """All parts of a batch. Passed to attention instead of a bias, with packed hidden states (1, N, W)."""

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, parts: Sequence[Part], mask: Tensor, bias: Callable[[Tensor], Tensor]) -> "Spans":
        """Build the spans of `parts`.

        Args:
            mask: (B, S) bool, True at real tokens, which come first.
            bias: maps a part's mask (rows, tokens) to the bias of its scores.
        """
        starts = np.cumsum([0, *(part.size for part in parts)])
        return cls(
            tuple(Span(part, int(start), bias(cut(mask, part))) for part, start in zip(parts, starts, strict=False))
        )

    def attend(self, attend: Callable[..., Tensor], *projected: Tensor) -> Tensor:
        """Call `attend` with each part (rows, tokens, W) of `projected` and its bias; pack the results: (1, N, W)."""
        mixed = [attend(*map(span.of, projected), span.bias) for span in self.spans]
        return torch.cat([part.flatten(0, 1) for part in mixed])[None]

    def plus(self, bias: Callable[[int, int], Tensor]) -> "Spans":
        """Return the spans with `bias(queries, keys)` added to each part's bias."""
        return Spans(
            tuple(
                Span(span.part, span.start, span.bias + bias(span.part.tokens, span.part.tokens)) for span in self.spans
            )
        )


def pack(parts: Sequence[Part], embed: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Embed each part of `ids` (B, S) and concatenate: (1, N, W)."""
    return torch.cat([embed(cut(ids, part)).flatten(0, 1) for part in parts])[None]


def token_indices(parts: Sequence[Part], rows: int, tokens: int) -> Tensor:
    """Index (rows, tokens) of each token of the batch among the packed tokens; arbitrary at padding."""
    indices = np.zeros((rows, tokens), dtype=np.int64)
    start = 0
    for part in parts:
        indices[list(part.rows), : part.tokens] = start + np.arange(part.size).reshape(len(part.rows), part.tokens)
        start += part.size
    return torch.from_numpy(indices)


def cut(batch: Tensor, part: Part) -> Tensor:
    """Return the rows and columns of `batch` (B, S) that belong to `part`: (rows, tokens)."""
    return batch[list(part.rows), : part.tokens]
