"""Rows of one side network while their texts are made, and how its faults are kept from its neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ladder.backbone.kv_cache import DecoderCache
from ladder.backbone.model import Taps
from ladder.decoding.settings import Generation
from ladder.errors import NotFiniteError, is_out_of_memory
from ladder.stacked.network import Side

Tokens = tuple[int, ...]
Decoded = list[Tokens | Exception]
"""Of a segment's rows, without start and end tokens; an exception in place of a row that failed."""
Result = TypeVar("Result")


@dataclass(slots=True, kw_only=True, eq=False)
class Segment:
    """Adjacent rows of one side network that are decoded alike."""

    side: Side
    taps: Taps
    """Encoder taps of its rows, padded as the other segments' are."""
    limit: int
    """Most new tokens."""
    generation: Generation = field(default_factory=Generation)
    seeds: Sequence[int | None] = ()
    """Of sampling, a row each; empty: all have the generation's."""
    memory: Tensor = field(init=False)
    memory_mask: Tensor = field(init=False)
    cache: DecoderCache = field(init=False)
    failure: Exception | None = field(init=False, default=None)
    """Why all of its rows failed."""
    broken: Tensor = field(init=False)
    """(rows,) bool: those whose logits were not finite."""

    def __post_init__(self) -> None:
        self.memory_mask = self.taps.mask
        self.broken = torch.zeros(len(self), dtype=torch.bool, device=self.taps.mask.device)

    def __len__(self) -> int:
        return len(self.taps.mask)

    @property
    def failed(self) -> Tensor:
        """(rows,) bool."""
        return self.broken | (self.failure is not None)

    def begin(self) -> None:
        self.memory, self.cache = self.side.encode(self.taps), self.side.decoder_cache()

    def keep(self, rows: Tensor, asked: Tensor) -> None:
        """Go on with some rows alone.

        Args:
            rows: (N,) of those in `broken`.
            asked: (M,) of those in `memory` and the cache, where each row may be several.
        """
        self.broken, self.memory, self.memory_mask = self.broken[rows], self.memory[asked], self.memory_mask[asked]
        self.cache.reorder(asked)

    def isolated(self, step: Callable[..., Result], *args: object) -> Result | None:
        """Run a step; what it raises is this segment's alone. None where it failed, now or before."""
        if self.failure is not None:
            return None
        try:
            return step(*args)
        except Exception as error:  # a side network's fault must not reach its neighbours
            if is_out_of_memory(error):
                raise  # the device's fault, not this side network's
            self.failure = error
            return None

    def ending(self, tokens: Sequence[int], *, broken: bool, end: int) -> Tokens | Exception:
        """Of one row: its tokens (those after the start token) up to the end token or the limit, or its fault.

        Args:
            broken: its `broken`.
        """
        if self.failure is not None:
            return self.failure
        if broken:
            return not_finite()
        return tuple(tokens[: min(tokens.index(end) if end in tokens else self.limit, self.limit)])


def joined(segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """The backbone encoder's final state (B, S, D) and mask (B, S) of all segments' rows."""
    finals = [segment.taps.final for segment in segments]
    return torch.cat([each for each in finals if each is not None]), torch.cat([s.taps.mask for s in segments])


def rows_of(taps: Taps, rows: slice) -> Taps:
    """A view of some rows."""
    return Taps(
        embeddings=taps.embeddings[rows],
        blocks=tuple(block[rows] for block in taps.blocks),
        mask=taps.mask[rows],
        final=None if taps.final is None else taps.final[rows],
    )


def not_finite() -> NotFiniteError:
    return NotFiniteError("the side network's logits are not finite numbers")
