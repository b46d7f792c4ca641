"""Matrix products of many rows, each with its own side network's weights, and the buffers that they write into."""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from ladder.backbone.layers import relative_bucket
from ladder.stacked.grouping import Run, parts_of
from ladder.stacked.layout import Layout


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

    def buffer(self, name: str, *shape: int) -> Tensor:
        """A buffer for what is soon done with: fresh memory costs more than many a product. One for a name."""
        found = self._buffers.get(name)
        if found is None or found.shape != shape:
            found = self._buffers[name] = self._rows[0].new_empty(shape)
        return found

    def matmul_into(self, name: str, hidden: Tensor, width: int, buffer: str) -> Tensor:
        """(B, T, in) times `name` (in, width), in the buffer `buffer`."""
        return self._write(name, self._parts(hidden), self.buffer(buffer, *hidden.shape[:2], width))

    def matmul(self, name: str, hidden: Tensor) -> Tensor:
        """(B, T, in) times `name` (in, out)."""
        width = self._layout.parts[name].shape[-1]
        return self._write(name, self._parts(hidden), hidden.new_empty(*hidden.shape[:2], width))

    def matmul_runs(self, name: str, taps: Sequence[Tensor], tokens: int) -> Tensor:
        """As `matmul`, of each run's taps (side networks, rows * T, in)."""
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


MOST_TABLES = 64
MOST_BYTES = 64 * 2**20
"""Of all tables; one that is larger is there alone."""
STEP = 256
"""Tables for one query are made for a multiple of as many keys, so that decoding needs no new one for each token."""


class Buckets:
    """Tables, made once for each length; the oldest goes. Thread-safe: a loader replays beside the device thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[tuple[object, ...], Tensor] = {}

    def table(self, queries: int, keys: int, buckets: int, farthest: int, both: bool, device: torch.device) -> Tensor:
        """(queries * keys,) for the last `queries` of `keys` positions.

        Args:
            farthest: distance from which on there is one bucket.
            both: an encoder's, that looks both ways.
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
