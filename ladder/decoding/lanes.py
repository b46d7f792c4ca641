"""Rows of one side network, or of several that are computed as one, while their texts are made."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ladder.backbone.kv_cache import StaticCache
from ladder.backbone.model import Taps
from ladder.decoding.segments import rows_of
from ladder.decoding.settings import Generation
from ladder.errors import is_out_of_memory
from ladder.side.network import SideNetwork
from ladder.stacked.network import Side, StackedBatch, StackedSide


@dataclass(slots=True, eq=False, kw_only=True, repr=False)
class RunningRow:
    """One text that is being made, a token at a time."""

    side: Side
    limit: int
    """Most new tokens."""
    generation: Generation = field(default_factory=Generation)
    random: torch.Generator | None = None
    """Of sampling: the row's own."""
    tokens: list[int] = field(init=False, default_factory=list)
    """Said so far, without start and end tokens."""

    @property
    def is_too_short(self) -> bool:
        """It must not end yet."""
        return len(self.tokens) < self.generation.min_new_tokens


Failures = list[tuple[RunningRow, Exception]]


class Lane:
    """Rows whose side decoders run as one. They stand in its cache in the order of `rows`."""

    def __init__(self) -> None:
        self.rows: list[RunningRow] = []
        self._cache: StaticCache | None = None
        self._network: SideNetwork | StackedBatch | None = None

    @property
    def bytes(self) -> int:
        """Of keys and values."""
        return 0 if self._cache is None else self._cache.bytes

    def admit(self, rows: Sequence[RunningRow], taps: Taps, inputs: Sequence[int]) -> Failures:
        """Rows join behind the others.

        Args:
            taps: the backbone encoder's.
            inputs: of each row, the row of `taps` that it reads.
        Returns:
            Those that do not, because their side encoders raised.
        """
        try:
            network = together([row.side for row in rows])
            cross_kv, blocks = network.cross_kv(_encode(network, taps, inputs)), network.decoder_cache().blocks
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return self._admit_one_by_one(rows, taps, inputs, error)
        cache = self._cache or StaticCache(blocks)
        cache.admit(cross_kv, taps.mask[inputs])
        self._cache, self._network = cache, None
        self.rows += rows
        return []

    def _admit_one_by_one(
        self, rows: Sequence[RunningRow], taps: Taps, inputs: Sequence[int], error: Exception
    ) -> Failures:
        if len(rows) == 1:
            return [(rows[0], error)]
        tried = [self.admit([row], taps, [place]) for row, place in zip(rows, inputs, strict=True)]
        return [failure for failures in tried for failure in failures]

    def drop(self, gone: Collection[RunningRow]) -> list[int]:
        """Rows leave; others may move into their places. Returns which row each one was."""
        places = {place for place, row in enumerate(self.rows) if row in gone}
        if self._cache is None or not places:
            return list(range(len(self.rows)))
        order = self._cache.drop(places)
        self.rows, self._network = [self.rows[row] for row in order], None
        return order

    def decode(self, taps: Taps, failures: Failures) -> list[Tensor]:
        """One token on.

        Args:
            taps: the backbone decoder's, of its rows and their newest tokens.
            failures: rows that fail are put here, also where the others then find no memory; they are no longer in it.
        Returns:
            (B, D) upsampled states of the rows that are left, in a list that is empty where none is.
        """
        try:
            return [self._decode(taps)]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            failed = self._failures(taps, error)
        failures += failed
        left = self.drop({row for row, _ in failed})
        return self.decode(taps.select(torch.tensor(left, device=taps.mask.device)), failures) if left else []

    def close(self) -> None:
        """Make the decoded token part of the texts; without it, the next `decode` writes over it."""
        if self._cache is not None:
            self._cache.close()

    def _decode(self, taps: Taps) -> Tensor:
        assert self._cache is not None
        self._cache.open()
        if self._network is None:
            self._network = together([row.side for row in self.rows])
        return self._network.decode(taps, _nothing(taps), self._cache.memory_mask, self._cache)[:, -1]

    def _failures(self, taps: Taps, error: Exception) -> Failures:
        """The rows that fail alone too; all of them where none does."""
        assert self._cache is not None
        self._cache.open()  # what failed may have counted its token already
        failures = []
        for place, row in enumerate(self.rows):
            try:
                self._decode_alone(place, rows_of(taps, slice(place, place + 1)))
            except Exception as own:
                if is_out_of_memory(own):
                    raise
                failures.append((row, own))
        return failures or [(row, error) for row in self.rows]

    def _decode_alone(self, place: int, taps: Taps) -> None:
        assert self._cache is not None
        mask = self._cache.memory_mask[place : place + 1]
        together([self.rows[place].side]).decode(taps, _nothing(taps), mask, self._cache.alone(place))


def together(sides: Sequence[Side]) -> SideNetwork | StackedBatch:
    """What computes rows of these side networks: all of one shape, or one and the same."""
    stacked = [side for side in sides if isinstance(side, StackedSide)]
    return StackedBatch(stacked) if stacked else cast(SideNetwork, sides[0])


def _encode(network: SideNetwork | StackedBatch, taps: Taps, inputs: Sequence[int]) -> Tensor:
    """The side encoders' (B, S, d) of rows that read the rows `inputs` of `taps`."""
    if isinstance(network, StackedBatch):
        return network.encode(taps, inputs)
    if list(inputs) != list(range(len(taps.mask))):
        taps = taps.select(torch.tensor(inputs, device=taps.mask.device))
    return network.encode(taps)


def lane_key(side: Side) -> object:
    """Equal for side networks that can be computed together."""
    return id(side) if isinstance(side, SideNetwork) else side.shape


def _nothing(taps: Taps) -> Tensor:
    """In the place of a memory that nobody looks at: the caches hold what is read of it."""
    return taps.embeddings[:0]
