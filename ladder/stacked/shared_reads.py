"""Products with what several rows of a side network read, such as the taps of one question about many images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ladder.backbone.rows import take
from ladder.stacked.grouping import Gather, group_rows
from ladder.stacked.layout import Layout
from ladder.stacked.products import Chunk, Products


class SharedReads:
    """Computes products once for each pair of a side network and what it reads, then repeats them for the rows.

    Args:
        slots: the chunk and slot of each row's side network.
        reads: for each row, the row of a tensor that it reads.
    """

    def __init__(
        self, layout: Layout, slots: Sequence[tuple[Chunk, int]], reads: Sequence[int], device: torch.device
    ) -> None:
        pairs = list(zip(slots, reads, strict=True))
        distinct = list(dict.fromkeys(pairs))
        grouping = group_rows([slot for slot, _ in distinct])
        ordered = [distinct[index] for index in grouping.order]
        position = {pair: index for index, pair in enumerate(ordered)}
        self._rows = [position[pair] for pair in pairs]
        self._gather = Gather(grouping.runs, [read for _, read in ordered], device)
        self._layout = layout
        self._products = Products(layout, grouping.runs)
        self._counts = [run.rows for run in grouping.runs for _ in range(run.count)]
        self._device = device

    def read(self, name: str, tensor: Tensor) -> Tensor:
        """Multiply each pair's row of (N, T, in) by the parameter `name` (in, out): (pairs, T, out)."""
        return self._products.matmul_runs(name, self._gather.of_runs(tensor), tensor.shape[1])

    def matmul(self, name: str, pairs: Tensor) -> Tensor:
        """Multiply (pairs, T, in) by the parameter `name` (in, out)."""
        return self._products.matmul(name, pairs)

    def vector(self, name: str) -> Tensor:
        """A parameter that is a vector, (pairs or 1, 1, width)."""
        part = self._layout.parts[name]
        vectors = self._products.vectors[:, None, part.start : part.stop]
        if len(vectors) == 1:
            return vectors
        return vectors.repeat_interleave(torch.tensor(self._counts, device=self._device), 0)

    def of_rows(self, pairs: Tensor) -> Tensor:
        """Repeat (pairs, ...) for the rows that read them; a view where each row's pair is its own."""
        return take(pairs, self._rows)
