"""Chunks of weights, and matrix products of many rows with them, each row with its own side network's weights."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ladder.backbone.layers import relative_bucket
from ladder.stacked.grouping import Run, parts_of
from ladder.stacked.layout import Layout, StackShape


@dataclass(frozen=True, eq=False)
class Chunk:
    """Slots for the weights of side networks of one shape."""

    number: int
    shape: StackShape
    rows: Tensor
    """(slots, numbers)."""
    buckets: "Buckets"


class Products:
    """Matrix products with the weights of some runs, which are views of their chunks.

    Rows are (B, T, width) in the order of computation: each run's are adjacent, and there each side network's.
    """

    def __init__(self, layout: Layout, runs: Sequence[Run[Chunk]], dtype: torch.dtype | None = None) -> None:
        """`dtype`: to compute in; None: that of the chunks."""
        self._layout = layout
        self._runs = runs
        self._rows = [run.chunk.rows[run.slots].to(dtype or run.chunk.rows.dtype) for run in runs]
        self._views: dict[str, list[Tensor]] = {}
        self._buffers: dict[str, Tensor] = {}

    @property
    def vectors(self) -> Tensor:
        """All parameters that are vectors, (side networks, numbers)."""
        vectors = [rows[:, : self._layout.vectors] for rows in self._rows]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors)

    def all(self, name: str) -> Tensor:
        """One parameter that is a matrix, (side networks, ...)."""
        views = [view if view.dim() == 3 else view[None] for view in self._of_runs(name)]
        return views[0] if len(views) == 1 else torch.cat(views)

    def buffer(self, name: str, *shape: int) -> Tensor:
        """One buffer for each name, for short-lived results: to allocate memory costs more than a small product."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[name] = self._rows[0].new_empty(shape)
        return buffer

    def matmul_into(self, name: str, hidden: Tensor, width: int, buffer: str) -> Tensor:
        """Multiply (B, T, in) by the parameter `name` (in, width), into a buffer."""
        return self._write(name, self._parts(hidden), self.buffer(buffer, *hidden.shape[:2], width))

    def matmul(self, name: str, hidden: Tensor) -> Tensor:
        """Multiply (B, T, in) by the parameter `name` (in, out), into new memory."""
        width = self._layout.parts[name].shape[-1]
        return self._write(name, self._parts(hidden), hidden.new_empty(*hidden.shape[:2], width))

    def matmul_runs(self, name: str, taps: Sequence[Tensor], tokens: int) -> Tensor:
        """As `matmul`, for each run's taps (side networks, rows * T, in)."""
        rows, width = self._runs[-1].stop, self._layout.parts[name].shape[-1]
        return self._write(name, taps, taps[0].new_empty(rows, tokens, width))

    def add(self, state: Tensor, name: str, hidden: Tensor) -> None:
        """Add the product of (B, T, in) and the parameter `name` (in, width) to `state` (B, T, width), in place."""
        self.add_of(state, name, self._parts(hidden))

    def add_of(self, state: Tensor, name: str, taps: Sequence[Tensor]) -> None:
        """As `add`, for each run's taps (side networks, rows * T, in)."""
        for target, part, weight in zip(self._parts(state), taps, self._of_runs(name), strict=True):
            if weight.dim() == 2:
                target.addmm_(part, weight)
            else:
                target.baddbmm_(part, weight)

    def _write(self, name: str, parts: Sequence[Tensor], out: Tensor) -> Tensor:
        for target, part, weight in zip(self._parts(out), parts, self._of_runs(name), strict=True):
            if weight.dim() == 2:
                torch.mm(part, weight, out=target)
            else:
                torch.bmm(part, weight, out=target)
        return out

    def _parts(self, hidden: Tensor) -> list[Tensor]:
        """Each run's rows, as they are multiplied; views where `hidden` is contiguous."""
        return parts_of(self._runs, hidden)

    def _of_runs(self, name: str) -> list[Tensor]:
        """A parameter's view for each run: (side networks, in, out), or (in, out) where it is one side network."""
        views = self._views.get(name)
        if views is None:
            part = self._layout.parts[name]
            views = [_view(rows, part.start, part.shape) for rows in self._rows]
            self._views[name] = views
        return views


def _view(rows: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
    strides = (shape[1], 1)
    if len(rows) == 1:
        return rows.as_strided(shape, strides, rows.storage_offset() + start)
    return rows.as_strided((len(rows), *shape), (rows.stride(0), *strides), rows.storage_offset() + start)


MOST_TABLES = 64
MOST_BYTES = 64 * 2**20
"""Of all tables; a larger one is kept alone."""
STEP = 256
"""Tables for one query are made for a multiple of as many keys, so that decoding needs no new one for each token."""


class Buckets:
    """Tables of relative position buckets, made once for each length; the oldest are forgotten.

    Thread-safe: a loader replays golden examples while the device thread computes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[tuple[object, ...], Tensor] = {}

    def table(self, queries: int, keys: int, buckets: int, farthest: int, both: bool, device: torch.device) -> Tensor:
        """Make or find the buckets (queries * keys,) of the last `queries` of `keys` positions.

        Args:
            farthest: distance from which on there is one bucket.
            both: True for an encoder, which attends both ways.
        """
        if queries > 1:
            return self._known(queries, keys, buckets, farthest, both, device)
        longest = -(-keys // STEP) * STEP
        return self._known(1, longest, buckets, farthest, both, device)[longest - keys :]

    def _known(self, queries: int, keys: int, buckets: int, farthest: int, both: bool, device: torch.device) -> Tensor:
        key = (queries, keys, buckets, farthest, both, device)
        with self._lock, torch.inference_mode(False):
            if key not in self._tables:
                positions = torch.arange(keys, device=device)
                distance = positions[None, :] - positions[keys - queries :, None]
                self._tables[key] = relative_bucket(distance, buckets, farthest, both).flatten()
                self._forget_oldest()
            return self._tables[key]

    def _forget_oldest(self) -> None:
        while len(self._tables) > 1 and (
            len(self._tables) > MOST_TABLES or sum(table.nbytes for table in self._tables.values()) > MOST_BYTES
        ):
            del self._tables[next(iter(self._tables))]
