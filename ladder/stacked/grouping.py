"""The order in which rows of different side networks are computed, so that few matrix products compute them all.

Rows of one side network are adjacent. Side networks with equally many rows whose slots are evenly spaced in one chunk
make a run: their weights are one strided view, which a batched matrix product reads without a copy.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ladder.backbone.rows import adjacent, take

ChunkT = TypeVar("ChunkT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Run(Generic[ChunkT]):
    """Side networks of a chunk, `step` slots apart, with `rows` rows each."""

    chunk: ChunkT
    first: int
    """Slot of the first side network."""
    step: int
    count: int
    """Side networks."""
    rows: int
    start: int
    """Its first row in the order of computation."""

    @property
    def stop(self) -> int:
        """One past its last row in the order of computation."""
        return self.start + self.count * self.rows

    @property
    def slots(self) -> slice:
        """Its side networks' slots in the chunk."""
        return slice(self.first, self.first + (self.count - 1) * self.step + 1, self.step)


@dataclass(frozen=True, slots=True)
class Grouping(Generic[ChunkT]):
    """How rows are computed."""

    order: Sequence[int]
    """Indices of the rows, in the order of computation."""
    runs: Sequence[Run[ChunkT]]


def group_rows(slots: Sequence[tuple[ChunkT, int]]) -> Grouping[ChunkT]:
    """Group rows by each one's chunk and slot."""
    rows: dict[tuple[ChunkT, int], list[int]] = {}
    for row, slot in enumerate(slots):
        rows.setdefault(slot, []).append(row)
    alike: dict[tuple[int, ChunkT], list[int]] = {}
    for (chunk, slot), members in rows.items():
        alike.setdefault((len(members), chunk), []).append(slot)
    order: list[int] = []
    runs: list[Run[ChunkT]] = []
    for (count, chunk), members in sorted(alike.items(), key=lambda item: item[0][0]):
        for first, step, length in progressions(sorted(members)):
            runs.append(Run(chunk, first, step, length, count, len(order)))
            order.extend(row for n in range(length) for row in rows[chunk, first + n * step])
    return Grouping(order, runs)


def progressions(slots: Sequence[int]) -> Iterable[tuple[int, int, int]]:
    """Split ascending numbers into evenly spaced stretches: first, step, length of each. Any two numbers are one."""
    start = 0
    while start < len(slots):
        stop = start + 1
        step = slots[stop] - slots[start] if stop < len(slots) else 1
        while stop < len(slots) and slots[stop] - slots[stop - 1] == step:
            stop += 1
        yield slots[start], step, stop - start
        start = stop


class Gather:
    """Reads taps in the order of computation, without a copy where rows read adjacent or shared inputs.

    Args:
        inputs: the row of the taps that each row reads.
    """

    def __init__(self, runs: Sequence[Run[ChunkT]], inputs: Sequence[int], device: torch.device) -> None:
        self._runs = runs
        self._inputs = inputs
        self._device = device
        self._shared = [_shared(inputs[run.start : run.stop], run.rows) for run in runs]
        self._all_shared = all(self._shared)
        self._first = adjacent(inputs)

    def rows(self, tensor: Tensor) -> Tensor:
        """Take each row's input, (B, ...) of (N, ...); a view where rows read adjacent inputs in their order."""
        if self._first == 0 and len(tensor) == len(self._inputs):
            return tensor
        if self._first is not None:
            return tensor[self._first : self._first + len(self._inputs)]
        return tensor.index_select(0, self._index)

    def of_runs(self, tap: Tensor) -> list[Tensor]:
        """Split a tap (N, T, D) by runs, as `parts_of`; inputs that a run's side networks share are not repeated."""
        if not self._all_shared:
            return parts_of(self._runs, self.rows(tap))
        parts = []
        for run, shared in zip(self._runs, self._shared, strict=True):
            part = take(tap, shared).reshape(-1, tap.shape[-1])
            parts.append(part if run.count == 1 else part.expand(run.count, -1, -1))
        return parts

    @cached_property
    def _index(self) -> Tensor:
        return torch.tensor(self._inputs, device=self._device)


def _shared(inputs: Sequence[int], rows: int) -> Sequence[int]:
    """The inputs of one of a run's side networks where all of them read the same ones; else nothing."""
    first = inputs[:rows]
    return first if list(first) * (len(inputs) // rows) == list(inputs) else ()


def parts_of(runs: Sequence[Run[ChunkT]], hidden: Tensor) -> list[Tensor]:
    """Split (B, T, width) in the order of computation by runs.

    Returns:
        For each run (side networks, rows * T, width), or (rows * T, width) where it is one side network.
    """
    width = hidden.shape[-1]
    if len(runs) == 1:
        return [hidden.reshape(-1, width) if runs[0].count == 1 else hidden.reshape(runs[0].count, -1, width)]
    shapes = [(-1, width) if run.count == 1 else (run.count, -1, width) for run in runs]
    return [hidden[run.start : run.stop].reshape(shape) for run, shape in zip(runs, shapes, strict=True)]
