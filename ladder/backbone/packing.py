"""Rows of unequal lengths without most of their padding: parts of a batch, each of rows that are near in length.

All parts' tokens lie one after the other, so that every matrix is multiplied once for all of them; only attention
looks at each part for itself. A part is padded to its own longest row. What reads the activations afterwards does so
group by group, each of a few parts' rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PART_TOKENS, GROUP_TOKENS = 8, 400
"""What a part, or a group, more costs, in tokens with padding: attention once more in each block; or side networks and
a decoder step once more, which take far less time for a token."""
WORTH = 0.95
"""A batch is divided where that leaves at most so much of its padded tokens."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a batch."""

    rows: tuple[int, ...]
    tokens: int
    """Of the longest of them."""

    @property
    def size(self) -> int:
        """Tokens, padding counted."""
        return len(self.rows) * self.tokens


@dataclass(frozen=True, slots=True)
class Division:
    """How a batch is computed: the encoder part by part, and what reads it group by group."""

    parts: list[Part]
    groups: list[Part]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Division":
        """The cheapest one, of rows of so many tokens each."""
        return cls(divide(lengths, PART_TOKENS), divide(lengths, GROUP_TOKENS))

    @property
    def tokens(self) -> int:
        """That the encoder computes."""
        return sum(part.size for part in self.parts)

    @property
    def is_trivial(self) -> bool:
        return len(self.parts) == len(self.groups) == 1


def divide(lengths: Sequence[int], each: int) -> list[Part]:
    """The parts that cost least, shortest rows first; a single one where more would hardly save anything.

    Args:
        each: what a part costs besides its tokens, in tokens.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = np.asarray(lengths)[order]
    parts = [
        Part(tuple(sorted(order[start:end].tolist())), int(ordered[end - 1])) for start, end in _cuts(ordered, each)
    ]
    whole = Part(tuple(range(len(lengths))), int(ordered[-1]))
    return parts if sum(part.size for part in parts) <= WORTH * whole.size else [whole]


def _cuts(lengths: np.ndarray, each: int) -> list[tuple[int, int]]:
    """(start, end) of the parts of rows sorted by length: the cheapest division of the first 1, 2, 3 ... rows."""
    places = np.arange(len(lengths))
    costs, starts = np.zeros(len(lengths) + 1), np.zeros(len(lengths) + 1, dtype=int)
    for end in range(1, len(lengths) + 1):
        tried = costs[:end] + (end - places[:end]) * lengths[end - 1] + each
        starts[end] = tried.argmin()
        costs[end] = tried[starts[end]]
    cuts, end = [], len(lengths)
    while end:
        cuts.append((int(starts[end]), end))
        end = cuts[-1][0]
    return cuts[::-1]


@dataclass(frozen=True, slots=True)
class Span:
    """A part's place among all tokens, and what is added to its rows' scores."""

    part: Part
    start: int
    bias: Tensor
    """Broadcast to (rows, H, tokens, tokens)."""

    def of(self, packed: Tensor) -> Tensor:
        """Its own of (1, N, W), as (rows, tokens, W)."""
        rows, tokens = len(self.part.rows), self.part.tokens
        return packed[0, self.start : self.start + self.part.size].view(rows, tokens, -1)


@dataclass(frozen=True, slots=True)
class Spans:
    """All parts of a batch. What attention is given in a bias's place, with hidden states (1, N, W) of all tokens."""

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, parts: Sequence[Part], mask: Tensor, bias: Callable[[Tensor], Tensor]) -> "Spans":
        """
        Args:
            mask: (B, S) bool, True at real tokens, which come first.
            bias: of a part's mask.
        """
        starts = np.cumsum([0, *(part.size for part in parts)])
        return cls(
            tuple(Span(part, int(start), bias(cut(mask, part))) for part, start in zip(parts, starts, strict=False))
        )

    def attend(self, attend: Callable[..., Tensor], *projected: Tensor) -> Tensor:
        """(1, N, W) of what `attend` makes of each part's own (rows, tokens, W) of `projected`, and its bias."""
        said = [attend(*map(span.of, projected), span.bias) for span in self.spans]
        return torch.cat([each.flatten(0, 1) for each in said])[None]

    def plus(self, bias: Callable[[int, int], Tensor]) -> "Spans":
        """With a bias more, of so many queries and keys."""
        return Spans(
            tuple(
                Span(each.part, each.start, each.bias + bias(each.part.tokens, each.part.tokens)) for each in self.spans
            )
        )


def pack(parts: Sequence[Part], embed: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """(1, N, W): what `embed` makes of each part's own of `ids` (B, S), one after the other."""
    return torch.cat([embed(cut(ids, part)).flatten(0, 1) for part in parts])[None]


def places(parts: Sequence[Part], rows: int, tokens: int) -> Tensor:
    """(rows, tokens): where each of a batch's tokens lies among those of all parts; at padding, some other one."""
    found, start = np.zeros((rows, tokens), dtype=np.int64), 0
    for part in parts:
        found[list(part.rows), : part.tokens] = start + np.arange(part.size).reshape(len(part.rows), part.tokens)
        start += part.size
    return torch.from_numpy(found)


def cut(batch: Tensor, part: Part) -> Tensor:
    """A part's own (rows, tokens) of (B, S)."""
    return batch[list(part.rows), : part.tokens]
