"""Which input each row reads, and how taps come to the rows: as they lie where they can, copied once where not."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ladder.stack_products import parts_of
from ladder.stack_runs import Run


class Reads:
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
