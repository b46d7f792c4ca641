"""In which order rows of different side networks are computed: those of one, and equal numbers of rows, together.

A run is several side networks with as many rows each, whose slots are evenly spaced in one chunk. Then their weights
are one strided view, and a batched matrix product reads them where they lie: nothing is copied.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Side networks of a chunk, `step` slots apart, with `rows` rows each."""

    chunk: int
    first: int
    step: int
    count: int
    rows: int
    start: int
    """Its first row in the order of computation."""

    @property
    def stop(self) -> int:
        return self.start + self.count * self.rows

    @property
    def slots(self) -> slice:
        return slice(self.first, self.first + (self.count - 1) * self.step + 1, self.step)


def group_rows(places: Sequence[tuple[int, int]]) -> tuple[list[int], list[Run]]:
    """The order in which rows are computed, and their runs, of each row's (chunk, slot)."""
    rows: dict[tuple[int, int], list[int]] = {}
    for row, place in enumerate(places):
        rows.setdefault(place, []).append(row)
    alike: dict[tuple[int, int], list[int]] = {}
    for (chunk, slot), members in rows.items():
        alike.setdefault((len(members), chunk), []).append(slot)
    order, runs = [], []
    for (count, chunk), slots in sorted(alike.items()):
        for first, step, length in progressions(sorted(slots)):
            runs.append(Run(chunk, first, step, length, count, len(order)))
            order.extend(row for n in range(length) for row in rows[chunk, first + n * step])
    return order, runs


def progressions(slots: Sequence[int]) -> Iterable[tuple[int, int, int]]:
    """Ascending numbers as evenly spaced stretches: first, step, length. Any two are one."""
    start = 0
    while start < len(slots):
        stop = start + 1
        step = slots[stop] - slots[start] if stop < len(slots) else 1
        while stop < len(slots) and slots[stop] - slots[stop - 1] == step:
            stop += 1
        yield slots[start], step, stop - start
        start = stop


class Gather:
    """Of a lineup's rows, in the order of computation."""

    def __init__(self, runs: Sequence[Run], inputs: Sequence[int], device: torch.device) -> None:
        """
        Args:
            inputs: the row of the taps that each row reads.
        """
        self._runs, self._inputs, self._device = runs, inputs, device
        self._shared = [_shared(inputs[run.start : run.stop], run.rows) for run in runs]
        self._all_shared, self._first = all(self._shared), adjacent(inputs)

    def rows(self, tensor: Tensor) -> Tensor:
        """(B, ...) of the inputs' (N, ...); a view where the rows read adjacent inputs in their order."""
        if self._first == 0 and len(tensor) == len(self._inputs):
            return tensor
        if self._first is not None:
            return tensor[self._first : self._first + len(self._inputs)]
        return tensor.index_select(0, self._index)

    def of_runs(self, tap: Tensor) -> list[Tensor]:
        """A tap (N, T, D) for each run, as `parts_of` gives what is not shared."""
        if not self._all_shared:
            return parts_of(self._runs, self.rows(tap))
        width, said = tap.shape[-1], []
        for run, shared in zip(self._runs, self._shared, strict=True):
            own = take(tap, shared).reshape(-1, width)
            said.append(own if run.count == 1 else own.expand(run.count, -1, -1))
        return said

    @cached_property
    def _index(self) -> Tensor:
        return torch.tensor(self._inputs, device=self._device)


def _shared(inputs: Sequence[int], rows: int) -> Sequence[int]:
    """The inputs of a run's side networks, where all of them read the same ones; else nothing."""
    first = inputs[:rows]
    return first if list(first) * (len(inputs) // rows) == list(inputs) else ()


def adjacent(rows: Sequence[int]) -> int | None:
    """The first of rows that stand one after the other; None where they do not."""
    first = rows[0]
    return first if list(rows) == list(range(first, first + len(rows))) else None


def take(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows, at least one; a view where they are adjacent."""
    first = adjacent(rows)
    if first is not None:
        return tensor[first : first + len(rows)]
    return tensor.index_select(0, torch.tensor(rows, device=tensor.device))


def parts_of(runs: Sequence[Run], hidden: Tensor) -> list[Tensor]:
    """(B, T, width) in the order of computation, for each run (side networks, rows * T, width), or (rows * T, width)
    of one side network alone."""
    width = hidden.shape[-1]
    if len(runs) == 1:
        return [hidden.reshape(-1, width) if runs[0].count == 1 else hidden.reshape(runs[0].count, -1, width)]
    shapes = [(-1, width) if run.count == 1 else (run.count, -1, width) for run in runs]
    return [hidden[run.start : run.stop].reshape(shape) for run, shape in zip(runs, shapes, strict=True)]
