"""Keys and values of a decoder's attentions: a cache that grows with each token, and a buffer of many running rows.

A cache is an argument of a decoder step, which extends it in place. Knows no layer and no task.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(slots=True)
class KeyValues:
    """Keys and values of one attention, (B, H, S, head_width). Self-attention's grow with every decoded token."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, T, head_width) and return all of them, (B, H, S + T, head_width)."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], 2)
            values = torch.cat([self.values, values], 2)
        self.keys = keys
        self.values = values
        return keys, values


CrossKV = list[tuple[Tensor, Tensor]]
"""For each decoder block, the keys and values that its cross-attention reads, both (B, H, S, head_width)."""


@dataclass(slots=True)
class DecoderCache:
    """Keys and values of a stack of decoder blocks. Starts empty; `length` is the number of cached tokens."""

    blocks: int
    length: int = 0
    valid: Tensor | None = field(init=False, default=None)
    """(B, tokens) bool, True where a cached token, or the new one, belongs to its row; None: all do."""
    own: list[KeyValues] = field(init=False)
    """Self-attention's, by block."""
    cross: list[KeyValues] = field(init=False)
    """Cross-attention's, by block."""

    def __post_init__(self) -> None:
        self.own = [KeyValues() for _ in range(self.blocks)]
        self.cross = [KeyValues() for _ in range(self.blocks)]

    def reorder(self, rows: Tensor, *, cross: bool = True) -> None:
        """Keep `rows` (B',) of every key and value, in that order: beam search, finished rows.

        Args:
            cross: False keeps the cross-attention's as they are: for rows replaced by others of the same source.
        """
        for entry in (*self.own, *self.cross) if cross else self.own:
            if entry.keys is not None and entry.values is not None:
                entry.keys, entry.values = entry.keys[rows], entry.values[rows]


FEWEST_SLOTS = 4
FEWEST_COLUMNS = 16
STEP = 16
"""The columns for memory are a multiple of this."""


class StaticCache(DecoderCache):
    """Keys and values of B running rows, the first B slots of its buffers.

    A step is: `drop` the rows that ended, `admit` those that join, `open`, a decode of one token a row, `close`. Only
    `close` makes the token part of the texts: after a decode that failed, the next `open` writes over it.

    Size of the buffers, counted since the cache was last empty: fewer than twice as many slots as the largest number of
    rows at once (at least 4); fewer than four times as many columns as the longest text had tokens (at least 16); and
    columns for the longest memory and at most 15 more. An empty cache holds no buffer.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.own: list[KeyValues] = [_Own(self) for _ in range(blocks)]
        self.cross: list[KeyValues] = [KeyValues() for _ in range(blocks)]
        self._forget()

    def _forget(self) -> None:
        self.rows = 0
        self.length = 0
        self._closed = 0  # the column after that of the newest token that is part of the texts
        self.valid: Tensor | None = None
        self.memory_mask = torch.ones(0, 0, dtype=torch.bool)
        """(B, S) bool."""
        self._low = 0  # the first column in use
        self._starts: list[int] = []  # the column of each row's first token
        self._first: Tensor | None = None  # `_starts` on the device, (B, 1), once a step needs it
        self._own: Tensor | None = None
        self._cross: Tensor | None = None
        for entry in (*self.own, *self.cross):
            entry.keys = entry.values = None

    @property
    def bytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in (self._own, self._cross) if buffer is not None)

    def drop(self, ended: Collection[int]) -> list[int]:
        """Remove the rows `ended`; the last rows move into the free slots.

        Returns:
            For each row that is left, its index before.
        """
        left = [row for row in range(self.rows) if row not in ended]
        if len(left) == self.rows:
            return left
        order = _closed_up(left)
        if order:
            self._move(order)
        else:
            self._forget()
        return order

    def admit(self, cross_kv: CrossKV, mask: Tensor) -> None:
        """Add rows after the others.

        Args:
            cross_kv: each block's keys and values of the new rows' memory, (new rows, H, S, head_width).
            mask: (new rows, S) bool, True at real tokens of their memory.
        """
        rows = self.rows + len(mask)
        new = mask[:, : _extent(mask)]
        start = self._closed
        mask = _padded([self.memory_mask, new]) if self.rows else new
        if self._own is not None:
            self._own = _grown(self._own, rows)
            self._own[:, self.rows : rows, :, self._low : start] = 0  # masked values must be finite too
        if cross_kv:
            columns = -(-mask.shape[1] // STEP) * STEP
            self._cross = self._with_room(self._cross, cross_kv[0][0], rows, columns)
            self._write(self._cross[:, self.rows : rows], cross_kv, new.shape[1])
        self._starts += [start] * len(new)
        self.rows = rows
        self.memory_mask = mask
        self._first = None

    def open(self) -> None:
        """Make room for the next token, or again for one that was not closed. Call it before every decode."""
        self.length = self._closed - self._low
        self._make_room()
        if self._first is None:
            first = torch.tensor(self._starts, device=self.memory_mask.device)[:, None]
            self._show_cross()
            self._first = first  # last: what fails before is done again
        columns = torch.arange(self._low, self._low + self.length + 1, device=self._first.device)
        self.valid = columns >= self._first if max(self._starts) > self._low else None
        self._show_own()

    def close(self) -> None:
        """Make the decoded token part of the texts."""
        self._closed = self._low + self.length

    def alone(self, row: int) -> DecoderCache:
        """Return a cache of one row, to decode it alone. Extending it does not change this cache."""
        alone = DecoderCache(self.blocks)
        start = self._starts[row] - self._low
        alone.length = self.length - start
        for target, source in zip(alone.own, self.own, strict=True):
            if source.keys is not None and source.values is not None and alone.length:
                target.keys = source.keys[row : row + 1, :, start : self.length]
                target.values = source.values[row : row + 1, :, start : self.length]
        for target, source in zip(alone.cross, self.cross, strict=True):
            assert source.keys is not None
            assert source.values is not None
            target.keys = source.keys[row : row + 1]
            target.values = source.values[row : row + 1]
        return alone

    def new_column(self, like: Tensor) -> None:
        """Allocate the self-attention buffer for keys like `like`, (B, H, 1, head_width)."""
        self._own = self._with_room(None, like, self.rows, FEWEST_COLUMNS)
        self._show_own()

    def _move(self, order: Sequence[int]) -> None:
        """Row `order[i]` becomes row i. No row moves towards the end."""
        end = self._low + self.length
        mask = self.memory_mask[torch.tensor(order, device=self.memory_mask.device)]
        mask = mask[:, : _extent(mask)]  # allocates memory before a row moves: if it fails, no row has moved
        for to, row in enumerate(order):
            if to != row and self._own is not None:
                self._own[:, to, :, self._low : end] = self._own[:, row, :, self._low : end]
            if to != row and self._cross is not None:
                self._cross[:, to] = self._cross[:, row]
        self.memory_mask = mask
        self._starts = [self._starts[row] for row in order]
        self.rows = len(order)
        self._low = min(self._starts)
        self._first = None
        self.length = end - self._low

    def _make_room(self) -> None:
        """If all columns are used, move the window to the first column, in a buffer twice as wide if it is long."""
        own = self._own
        if own is None or self._low + self.length < own.shape[3]:
            return
        room = own if 2 * self.length <= own.shape[3] else own.new_empty(*own.shape[:3], 2 * own.shape[3], own.shape[4])
        room[:, :, :, : self.length] = own[:, :, :, self._low : self._low + self.length]
        self._own = room
        self._closed -= self._low
        self._first = None
        self._starts = [start - self._low for start in self._starts]
        self._low = 0

    def _show_own(self) -> None:
        if self._own is None:
            return
        end = self._low + self.length
        shown = self._own[:, : self.rows, :, self._low : end + 1]
        new = self._own[:, : self.rows, :, end]
        for block, entry in enumerate(self.own):
            assert isinstance(entry, _Own)
            entry.keys, entry.values = shown[2 * block], shown[2 * block + 1]
            entry.newest = new[2 * block], new[2 * block + 1]

    def _show_cross(self) -> None:
        if self._cross is None:
            return
        shown = self._cross[:, : self.rows, :, : self.memory_mask.shape[1]].unbind()
        for block, entry in enumerate(self.cross):
            entry.keys, entry.values = shown[2 * block : 2 * block + 2]

    def _write(self, slots: Tensor, cross_kv: CrossKV, tokens: int) -> None:
        """Copy the first `tokens` keys and values to `slots` (2 * blocks, new rows, H, columns, head_width)."""
        for index, tensor in enumerate(tensor for pair in cross_kv for tensor in pair):
            slots[index, :, :, :tokens] = tensor[:, :, :tokens]
        slots[:, :, :, tokens:] = 0  # masked values must be finite too

    def _with_room(self, buffer: Tensor | None, like: Tensor, rows: int, columns: int) -> Tensor:
        """Return a buffer (2 * blocks, slots, H, columns, head_width): each block's keys, then its values."""
        if buffer is not None:
            return _grown(buffer, rows, columns)
        slots = _power(max(rows, FEWEST_SLOTS))
        return like.new_empty(2 * self.blocks, slots, like.shape[1], columns, like.shape[3])


class _Own(KeyValues):
    """A block's self-attention: `keys` and `values` are views of the columns in use; the last is the newest token's."""

    def __init__(self, cache: StaticCache) -> None:
        super().__init__()
        self.cache = cache
        self.newest: tuple[Tensor, Tensor] | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest token's keys and values (B, H, 1, head_width) and return all of them."""
        if self.keys is None:
            self.cache.new_column(keys)
        assert self.newest is not None
        assert self.keys is not None
        assert self.values is not None
        self.newest[0].copy_(keys[:, :, 0])
        self.newest[1].copy_(values[:, :, 0])
        return self.keys, self.values


def _extent(mask: Tensor) -> int:
    """Number of columns of (B, S) up to the last one that any row uses."""
    used = mask.any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def _padded(masks: Sequence[Tensor]) -> Tensor:
    """Concatenate masks (rows, S) of different S into (B, longest S)."""
    longest = max(mask.shape[1] for mask in masks)
    return torch.cat([F.pad(mask, (0, longest - mask.shape[1])) for mask in masks])


def _grown(buffer: Tensor, slots: int, columns: int = 0) -> Tensor:
    """Return `buffer`, or a larger copy if it has too few slots or columns."""
    if slots <= buffer.shape[1] and columns <= buffer.shape[3]:
        return buffer
    blocks, old_slots, heads, old_columns, width = buffer.shape
    larger = buffer.new_empty(blocks, max(old_slots, _power(slots)), heads, max(old_columns, columns), width)
    larger[:, :old_slots, :, :old_columns] = buffer
    larger[:, :old_slots, :, old_columns:] = 0
    return larger


def _closed_up(left: Sequence[int]) -> list[int]:
    """Order the rows `left` (ascending) so that the last ones fill the gaps and the others keep their index."""
    kept = set(left)
    movers = iter([row for row in left if row >= len(left)])
    return [row if row in kept else next(movers) for row in range(len(left))]


def _power(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << (least - 1).bit_length()
