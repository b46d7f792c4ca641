"""Matrix products of many rows, each with its own side network's weights, and the buffers that they write into."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ladder.stack_layout import Layout
from ladder.stack_runs import Run


class Products:
    """The weights of a lineup's runs, as views of their chunks.

    Rows are (B, T, width) in the order of computation: each run's are adjacent, and there each side network's.
    """

    def __init__(self, layout: Layout, runs: Sequence[Run], chunks: Sequence[Tensor]) -> None:
        """
        Args:
            chunks: (slots, numbers) each, as the runs number them.
        """
        self._layout, self._runs = layout, runs
        self._rows = [chunks[run.chunk][run.slots] for run in runs]
        self._views: dict[str, list[Tensor]] = {}
        self._buffers: dict[str, Tensor] = {}

    @property
    def vectors(self) -> Tensor:
        """(side networks, numbers): all parameters that are vectors."""
        vectors = [rows[:, : self._layout.vectors] for rows in self._rows]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors)

    def all(self, name: str) -> Tensor:
        """A parameter that is a matrix, of each side network: (side networks, ...)."""
        views = [view if view.dim() == 3 else view[None] for view in self._of_runs(name)]
        return views[0] if len(views) == 1 else torch.cat(views)

    def room(self, name: str, *shape: int) -> Tensor:
        """A buffer for what is soon done with: fresh memory costs more than many a product. One for a name."""
        found = self._buffers.get(name)
        if found is None or found.shape != shape:
            found = self._buffers[name] = self._rows[0].new_empty(shape)
        return found

    def into_room(self, name: str, hidden: Tensor, width: int, room: str) -> Tensor:
        """(B, T, in) times `name` (in, width), in the buffer `room`."""
        return self._write(name, self._parts(hidden), self.room(room, *hidden.shape[:2], width))

    def fresh(self, name: str, hidden: Tensor) -> Tensor:
        """(B, T, in) times `name` (in, out)."""
        width = self._layout.parts[name].shape[-1]
        return self._write(name, self._parts(hidden), hidden.new_empty(*hidden.shape[:2], width))

    def fresh_of(self, name: str, taps: Sequence[Tensor], tokens: int) -> Tensor:
        """As `fresh`, of each run's taps (side networks, rows * T, in)."""
        rows, width = self._runs[-1].stop, self._layout.parts[name].shape[-1]
        return self._write(name, taps, taps[0].new_empty(rows, tokens, width))

    def add(self, state: Tensor, name: str, hidden: Tensor) -> None:
        """Add (B, T, in) times `name` (in, width) to `state` (B, T, width), in place."""
        self.add_of(state, name, self._parts(hidden))

    def add_of(self, state: Tensor, name: str, taps: Sequence[Tensor]) -> None:
        """As `add`, of each run's taps (side networks, rows * T, in)."""
        for own, part, weight in zip(self._parts(state), taps, self._of_runs(name), strict=True):
            if weight.dim() == 2:
                own.addmm_(part, weight)
            else:
                own.baddbmm_(part, weight)

    def _write(self, name: str, parts: Sequence[Tensor], out: Tensor) -> Tensor:
        for own, part, weight in zip(self._parts(out), parts, self._of_runs(name), strict=True):
            if weight.dim() == 2:
                torch.mm(part, weight, out=own)
            else:
                torch.bmm(part, weight, out=own)
        return out

    def _parts(self, hidden: Tensor) -> list[Tensor]:
        """Each run's, as it is multiplied; of what is contiguous, a view."""
        return parts_of(self._runs, hidden)

    def _of_runs(self, name: str) -> list[Tensor]:
        """A parameter's view for each run: (side networks, in, out), or (in, out) of one alone."""
        found = self._views.get(name)
        if found is None:
            part = self._layout.parts[name]
            found = [_view(rows, part.start, part.shape) for rows in self._rows]
            self._views[name] = found
        return found


def _view(rows: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
    strides = (shape[1], 1)
    if len(rows) == 1:
        return rows.as_strided(shape, strides, rows.storage_offset() + start)
    return rows.as_strided((len(rows), *shape), (rows.stride(0), *strides), rows.storage_offset() + start)


def parts_of(runs: Sequence[Run], hidden: Tensor) -> list[Tensor]:
    """(B, T, width) in the order of computation, for each run (side networks, rows * T, width), or (rows * T, width)
    of one side network alone."""
    width = hidden.shape[-1]
    if len(runs) == 1:
        return [hidden.reshape(-1, width) if runs[0].count == 1 else hidden.reshape(runs[0].count, -1, width)]
    shapes = [(-1, width) if run.count == 1 else (run.count, -1, width) for run in runs]
    return [hidden[run.start : run.stop].reshape(shape) for run, shape in zip(runs, shapes, strict=True)]
