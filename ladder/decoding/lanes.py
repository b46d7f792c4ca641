"""Lanes: running rows of one side network, or of several that are computed as one, and their side decoders' caches."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ladder.backbone.images import Images
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
    decoding: Generation = field(default_factory=Generation)
    random: torch.Generator | None = None
    """Of sampling; None: no sampling."""
    tokens: list[int] = field(init=False, default_factory=list)
    """Tokens so far, without start and end tokens."""

    @property
    def is_too_short(self) -> bool:
        """It must not end yet."""
        return len(self.tokens) < self.decoding.min_new_tokens


Failures = list[tuple[RunningRow, Exception]]


class Lane:
    """Rows whose side decoders run as one. Its cache has them in the order of `rows`."""

    def __init__(self) -> None:
        self.rows: list[RunningRow] = []
        self._cache: StaticCache | None = None
        self._network: SideNetwork | StackedBatch | None = None

    @property
    def bytes(self) -> int:
        """Bytes of its keys and values."""
        return 0 if self._cache is None else self._cache.bytes

    def admit(
        self, rows: Sequence[RunningRow], taps: Taps, inputs: Sequence[int], images: Images | None = None
    ) -> Failures:
        """Add rows behind the others.

        Args:
            taps: the backbone encoder's.
            inputs: for each row, the row of `taps` that it reads.
            images: of these rows; None: those of the rows of `taps` that they read.
        Returns:
            The rows whose side encoders raised; they do not join.
        """
        try:
            network = joint_network([row.side for row in rows])
            cross_kv, blocks = network.cross_kv(_encode(network, taps, inputs, images)), network.decoder_cache().blocks
            mask = network.memory_mask(taps, inputs, images)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return self._admit_one_by_one(rows, taps, inputs, images, error)
        cache = self._cache or StaticCache(blocks)
        cache.admit(cross_kv, mask)
        self._cache, self._network = cache, None
        self.rows += rows
        return []

    def _admit_one_by_one(
        self,
        rows: Sequence[RunningRow],
        taps: Taps,
        inputs: Sequence[int],
        images: Images | None,
        error: Exception,
    ) -> Failures:
        if len(rows) == 1:
            return [(rows[0], error)]
        failures: Failures = []
        for number, (row, index) in enumerate(zip(rows, inputs, strict=True)):
            failures += self.admit([row], taps, [index], None if images is None else images.select([number]))
        return failures

    def drop(self, gone: Collection[RunningRow]) -> list[int]:
        """Remove rows; others may move to their indices. Returns each remaining row's index before."""
        indices = {index for index, row in enumerate(self.rows) if row in gone}
        if self._cache is None or not indices:
            return list(range(len(self.rows)))
        order = self._cache.drop(indices)
        self.rows = [self.rows[index] for index in order]
        self._network = None
        return order

    def decode(self, taps: Taps, failures: Failures) -> list[Tensor]:
        """Decode one token of each row.

        Args:
            taps: the backbone decoder's, of its rows and their newest tokens.
            failures: rows that fail leave the lane and are added here, even where the call then raises for want of
                memory.
        Returns:
            (B, D) upsampled states of the remaining rows, in a list that is empty where none remains.
        """
        try:
            return [self._decode(taps)]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            failed = self._failures(taps, error)
        failures += failed
        remaining = self.drop({row for row, _ in failed})
        if not remaining:
            return []
        return self.decode(taps.select(torch.tensor(remaining, device=taps.mask.device)), failures)

    def close(self) -> None:
        """Make the decoded token part of the texts; without it, the next `decode` writes over it."""
        if self._cache is not None:
            self._cache.close()

    def _decode(self, taps: Taps) -> Tensor:
        assert self._cache is not None
        self._cache.open()
        if self._network is None:
            self._network = joint_network([row.side for row in self.rows])
        return self._network.decode(taps, _no_memory(taps), self._cache.memory_mask, self._cache)[:, -1]

    def _failures(self, taps: Taps, error: Exception) -> Failures:
        """The rows that fail alone too; all rows where none does."""
        assert self._cache is not None
        self._cache.open()  # what failed may have counted its token already
        failures = []
        for index, row in enumerate(self.rows):
            try:
                self._decode_alone(index, rows_of(taps, slice(index, index + 1)))
            except Exception as fault:
                if is_out_of_memory(fault):
                    raise
                failures.append((row, fault))
        return failures or [(row, error) for row in self.rows]

    def _decode_alone(self, index: int, taps: Taps) -> None:
        assert self._cache is not None
        mask = self._cache.memory_mask[index : index + 1]
        joint_network([self.rows[index].side]).decode(taps, _no_memory(taps), mask, self._cache.alone(index))


def joint_network(sides: Sequence[Side]) -> SideNetwork | StackedBatch:
    """Make the network that computes rows of these side networks: stacked ones of one shape, or one module."""
    stacked = [side for side in sides if isinstance(side, StackedSide)]
    return StackedBatch(stacked) if stacked else cast(SideNetwork, sides[0])


def _encode(network: SideNetwork | StackedBatch, taps: Taps, inputs: Sequence[int], images: Images | None) -> Tensor:
    """The side encoders' states (B, S, d) of rows that read the rows `inputs` of `taps`, and `images`."""
    if isinstance(network, StackedBatch) or network.config.visual is not None:
        return network.encode(taps, inputs, images)
    if list(inputs) != list(range(len(taps.mask))):
        taps = taps.select(torch.tensor(inputs, device=taps.mask.device))
    return network.encode(taps)


def lane_key(side: Side) -> object:
    """Make a key that is equal for side networks that can be computed as one."""
    return id(side) if isinstance(side, SideNetwork) else side.shape


def _no_memory(taps: Taps) -> Tensor:
    """Empty placeholder for the encoder memory; its keys and values come from the cache."""
    return taps.embeddings[:0]
