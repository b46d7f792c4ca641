"""Segments: adjacent rows of one side network that are decoded alike, with its faults kept from its neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
"""The tokens of a segment's rows, without start and end tokens; an exception in place of a row that failed."""
Result = TypeVar("Result")


@dataclass(slots=True, kw_only=True, eq=False)
class Segment:
    """Adjacent rows of one side network that are decoded alike."""

    side: Side
    taps: Taps
    """Encoder taps of its rows, padded as the other segments' are. `begin` reads their images and forgets them."""
    limit: int
    """Most new tokens."""
    decoding: Generation = field(default_factory=Generation)
    seeds: Sequence[int | None] = ()
    """Seeds of sampling, one for each row; empty: all have that of `decoding`."""
    memory: Tensor = field(init=False)
    memory_mask: Tensor = field(init=False)
    cache: DecoderCache = field(init=False)
    failure: Exception | None = field(init=False, default=None)
    """Why all of its rows failed."""
    broken: Tensor = field(init=False)
    """(rows,) bool: those whose logits were not finite."""

    def __post_init__(self) -> None:
        self.broken = torch.zeros(len(self), dtype=torch.bool, device=self.taps.mask.device)

    def __len__(self) -> int:
        return len(self.taps.mask)

    @property
    def failed(self) -> Tensor:
        """(rows,) bool."""
        return self.broken | (self.failure is not None)

    def begin(self) -> None:
        """Run the side encoder."""
        self.memory = self.side.encode(self.taps)
        self.memory_mask = self.side.memory_mask(self.taps)
        self.cache = self.side.decoder_cache()
        self.taps = replace(self.taps, images=None)

    def keep(self, rows: Tensor, beams: Tensor) -> None:
        """Keep some rows alone.

        Args:
            rows: (N,) indices into `broken`.
            beams: (M,) indices into `memory` and the cache, where each row may be several beams.
        """
        self.broken = self.broken[rows]
        self.memory = self.memory[beams]
        self.memory_mask = self.memory_mask[beams]
        self.cache.reorder(beams)

    def isolated(self, step: Callable[..., Result], *args: object) -> Result | None:
        """Run a step, and keep what it raises as this segment's failure. None where it failed, now or before."""
        if self.failure is not None:
            return None
        try:
            return step(*args)
        except Exception as error:
            if is_out_of_memory(error):
                raise  # the device's fault, not this side network's
            self.failure = error
            return None

    def ending(self, tokens: Sequence[int], *, broken: bool, end: int) -> Tokens | Exception:
        """The ending of one row: its tokens up to the end token or the limit, or why it failed.

        Args:
            tokens: those after the start token.
            broken: the row's flag in `broken`.
        """
        if self.failure is not None:
            return self.failure
        if broken:
            return not_finite()
        return tuple(tokens[: min(tokens.index(end) if end in tokens else self.limit, self.limit)])


def joined(segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """Join the backbone encoder's final states (B, S, D) and masks (B, S) of all segments' rows."""
    finals = [segment.taps.final for segment in segments if segment.taps.final is not None]
    return torch.cat(finals), torch.cat([segment.taps.mask for segment in segments])


def rows_of(taps: Taps, rows: slice) -> Taps:
    """Take some rows, as views."""
    return Taps(
        embeddings=taps.embeddings[rows],
        blocks=tuple(block[rows] for block in taps.blocks),
        mask=taps.mask[rows],
        final=None if taps.final is None else taps.final[rows],
        images=None if taps.images is None else taps.images.select(rows),
    )


def not_finite() -> NotFiniteError:
    """Make the error of a row whose logits are NaN or infinite."""
    return NotFiniteError("the side network's logits are not finite numbers")
