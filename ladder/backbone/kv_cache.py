"""Parts of backbones and, narrower, of side networks: norm, attention, feed-forward, T5's block and relative bias.

A cache is an argument, never an attribute. As in T5, attention is unscaled and no projection has a bias; a shape may
say otherwise.
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
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values


CrossKV = list[tuple[Tensor, Tensor]]
"""Each decoder block's keys and values of what its cross-attention reads, each (B, H, S, head_width)."""


@dataclass(slots=True)
class DecoderCache:
    """Keys and values of a stack of decoder blocks, made empty; `length` tokens are in it."""

    blocks: int
    length: int = 0
    valid: Tensor | None = field(init=False, default=None)
    """(B, tokens) bool: which cached tokens are a row's own, the new one's among them; None: all."""
    own: list[KeyValues] = field(init=False)
    cross: list[KeyValues] = field(init=False)

    def __post_init__(self) -> None:
        self.own = [KeyValues() for _ in range(self.blocks)]
        self.cross = [KeyValues() for _ in range(self.blocks)]

    def reorder(self, rows: Tensor, *, cross: bool = True) -> None:
        """Keep `rows` (B',) of every key and value, in that order: beam search, finished rows.

        Args:
            cross: False leaves the cross-attention's, where each row goes on with another of the same source.
        """
        for entry in (*self.own, *self.cross) if cross else self.own:
            if entry.keys is not None and entry.values is not None:
                entry.keys, entry.values = entry.keys[rows], entry.values[rows]


FEWEST_SLOTS, FEWEST_COLUMNS = 4, 16
STEP = 16
"""Places for memory are multiples of it."""


class StaticCache(DecoderCache):
    """Keys and values of B running rows, the first B slots of its buffers.

    A step is: `drop` the rows that ended, `admit` those that join, `open`, a decode of one token a row, `close`. Only
    `close` makes the token part of the texts: after a decode that failed, the next `open` writes over it.

    Since it was last empty, its buffers have less than twice as many slots as there were ever rows at once, 4 at least;
    less than four times as many columns as the longest text had tokens, 16 at least; and places for the longest memory,
    at most 15 more. An empty one holds none.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.own: list[KeyValues] = [_Own(self) for _ in range(blocks)]
        self.cross: list[KeyValues] = [KeyValues() for _ in range(blocks)]
        self._forget()

    def _forget(self) -> None:
        self.rows, self.length = 0, 0
        self._closed = 0  # the column after that of the newest token that is part of the texts
        self.valid: Tensor | None = None
        self.memory_mask = torch.ones(0, 0, dtype=torch.bool)
        """(B, S) bool."""
        self._low, self._starts = 0, list[int]()  # the first column in use, and that of each row's first token
        self._first: Tensor | None = None  # `_starts` on the device, (B, 1), once a step needs it
        self._own: Tensor | None = None
        self._cross: Tensor | None = None
        for entry in (*self.own, *self.cross):
            entry.keys = entry.values = None

    @property
    def bytes(self) -> int:
        """Of its buffers."""
        return sum(each.nbytes for each in (self._own, self._cross) if each is not None)

    def drop(self, gone: Collection[int]) -> list[int]:
        """Rows leave; the last ones move into their places. Returns which row each one was."""
        left = [row for row in range(self.rows) if row not in gone]
        if len(left) == self.rows:
            return left
        order = _closed_up(left)
        if order:
            self._move(order)
        else:
            self._forget()
        return order

    def admit(self, cross_kv: CrossKV, mask: Tensor) -> None:
        """Rows join behind the others.

        Args:
            cross_kv: each block's keys and values of their memory, (joining, H, S, head_width).
            mask: (joining, S) bool, of their memory.
        """
        rows, new, start = self.rows + len(mask), mask[:, : _extent(mask)], self._closed
        mask = _padded([self.memory_mask, new]) if self.rows else new
        if self._own is not None:
            self._own = _grown(self._own, rows)
            self._own[:, self.rows : rows, :, self._low : start] = 0  # what is masked must be finite all the same
        if cross_kv:
            places = -(-mask.shape[1] // STEP) * STEP
            self._cross = self._with_room(self._cross, cross_kv[0][0], rows, places)
            self._write(self._cross[:, self.rows : rows], cross_kv, new.shape[1])
        self._starts += [start] * len(new)
        self.rows, self.memory_mask, self._first = rows, mask, None

    def open(self) -> None:
        """Make room for the next token, or again for one that was not closed. Call it before every decode."""
        self.length = self._closed - self._low
        self._make_room()
        if self._first is None:
            self._first = torch.tensor(self._starts, device=self.memory_mask.device)[:, None]
            self._show_cross()
        columns = torch.arange(self._low, self._low + self.length + 1, device=self._first.device)
        self.valid = columns >= self._first if max(self._starts) > self._low else None
        self._show_own()

    def close(self) -> None:
        """Make the decoded token part of the texts."""
        self._closed = self._low + self.length

    def alone(self, row: int) -> DecoderCache:
        """One row's, to try it alone: what is done with it leaves this cache as it is."""
        alone = DecoderCache(self.blocks)
        start, alone.length = self._starts[row] - self._low, self._low + self.length - self._starts[row]
        for mine, theirs in zip(alone.own, self.own, strict=True):
            if theirs.keys is not None and theirs.values is not None and alone.length:
                mine.keys, mine.values = (
                    each[row : row + 1, :, start : self.length] for each in (theirs.keys, theirs.values)
                )
        for mine, theirs in zip(alone.cross, self.cross, strict=True):
            assert theirs.keys is not None
            assert theirs.values is not None
            mine.keys, mine.values = theirs.keys[row : row + 1], theirs.values[row : row + 1]
        return alone

    def new_column(self, like: Tensor) -> None:
        """Make the buffer for keys like these, (B, H, 1, head_width)."""
        self._own = self._with_room(None, like, self.rows, FEWEST_COLUMNS)
        self._show_own()

    def _move(self, order: Sequence[int]) -> None:
        """Row `order[i]` becomes row i. None moves towards the end."""
        end, mask = self._low + self.length, self.memory_mask[torch.tensor(order, device=self.memory_mask.device)]
        mask = mask[:, : _extent(mask)]  # all that takes memory; where there is none, no row has moved yet
        for to, row in enumerate(order):
            if to != row and self._own is not None:
                self._own[:, to, :, self._low : end] = self._own[:, row, :, self._low : end]
            if to != row and self._cross is not None:
                self._cross[:, to] = self._cross[:, row]
        self.memory_mask = mask
        self._starts = [self._starts[row] for row in order]
        self.rows, self._low, self._first = len(order), min(self._starts), None
        self.length = end - self._low

    def _make_room(self) -> None:
        """Where the columns are used up, begin again with the window at the first, of more if it is a long one."""
        own = self._own
        if own is None or self._low + self.length < own.shape[3]:
            return
        room = own if 2 * self.length <= own.shape[3] else own.new_empty(*own.shape[:3], 2 * own.shape[3], own.shape[4])
        room[:, :, :, : self.length] = own[:, :, :, self._low : self._low + self.length]
        self._own, self._closed, self._first = room, self._closed - self._low, None
        self._starts, self._low = [start - self._low for start in self._starts], 0

    def _show_own(self) -> None:
        if self._own is None:
            return
        end = self._low + self.length
        shown, new = self._own[:, : self.rows, :, self._low : end + 1], self._own[:, : self.rows, :, end]
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
        """Keys and values of the first `tokens` tokens into `slots` (2 * blocks, joining, H, places, head_width)."""
        for place, each in enumerate(each for pair in cross_kv for each in pair):
            slots[place, :, :, :tokens] = each[:, :, :tokens]
        slots[:, :, :, tokens:] = 0  # what is masked must be finite all the same

    def _with_room(self, buffer: Tensor | None, like: Tensor, rows: int, columns: int) -> Tensor:
        """(2 * blocks, slots, H, columns, head_width), each block's keys before its values."""
        if buffer is not None:
            return _grown(buffer, rows, columns)
        slots = _power(max(rows, FEWEST_SLOTS))
        return like.new_empty(2 * self.blocks, slots, like.shape[1], columns, like.shape[3])


class _Own(KeyValues):
    """Of a block's self-attention: `keys` and `values` show the columns in use, the newest token's last."""

    def __init__(self, cache: StaticCache) -> None:
        super().__init__()
        self.cache = cache
        self.newest: tuple[Tensor, Tensor] | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest token's, (B, H, 1, head_width)."""
        if self.keys is None:
            self.cache.new_column(keys)
        assert self.newest is not None
        assert self.keys is not None
        assert self.values is not None
        self.newest[0].copy_(keys[:, :, 0])
        self.newest[1].copy_(values[:, :, 0])
        return self.keys, self.values


def _extent(mask: Tensor) -> int:
    """Columns of (B, S) up to the last one that any row uses."""
    used = mask.any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def _padded(masks: Sequence[Tensor]) -> Tensor:
    """(B, S) of masks of different S."""
    longest = max(mask.shape[1] for mask in masks)
    return torch.cat([F.pad(mask, (0, longest - mask.shape[1])) for mask in masks])


def _grown(buffer: Tensor, slots: int, columns: int = 0) -> Tensor:
    """`buffer`, or a larger one with the same in it."""
    if slots <= buffer.shape[1] and columns <= buffer.shape[3]:
        return buffer
    blocks, had, heads, wide, width = buffer.shape
    larger = buffer.new_empty(blocks, max(had, _power(slots)), heads, max(wide, columns), width)
    larger[:, :had, :, :wide] = buffer
    larger[:, :had, :, wide:] = 0
    return larger


def _closed_up(left: Sequence[int]) -> list[int]:
    """The rows `left`, ascending: the last ones in the places of those that are gone."""
    kept, movers = set(left), iter([row for row in left if row >= len(left)])
    return [row if row in kept else next(movers) for row in range(len(left))]


def _power(least: int) -> int:
    """The power of two that is not less."""
    return 1 << (least - 1).bit_length()
