"""The activation cache: a tenant's token ids -> the backbone's activations, bounded in bytes. Device thread only.

It helps where an input comes again for another task or version. A swap changes no activation, so it evicts nothing.
The cache belongs to one engine, so to one backbone; if several shared it, the key would need their fingerprint.

Most inputs never come again, so keeping them must cost next to nothing. A pass is kept as it is, without a copy, and
passes are evicted in the order in which they came. Where the inputs of a pass come again together, it is read as it is,
and is the newest again. An input that comes again in other company is copied, without its padding, to the entries that
are evicted by least recent use. These may fill at most `KEPT_SHARE`, which leaves room for new inputs.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladder.backbone import Taps
from serving.metrics import Metrics

KEPT_SHARE = 0.8
"""At most this share of the bytes is for inputs that came again."""

ROWS_APART = 8
"""Several passes are read one by one, without a copy, where they have so many inputs on average."""

Key = tuple[str, tuple[int, ...]]
"""(salt, token ids)."""


def layers_of(taps: Taps) -> tuple[Tensor, ...]:
    """List the tensors (B, S, D) of a pass: embeddings, blocks and, where it ran to its end, the final state."""
    return (taps.embeddings, *taps.blocks, *(() if taps.final is None else (taps.final,)))


@dataclass(slots=True, eq=False)
class Known:
    """What the cache has of one input."""

    layers: Tensor
    """(N, S, D), without padding: embeddings, blocks and, where `whole`, the final state."""
    whole: bool
    first: Tensor | None = None
    """(M, 1, D), the same of the decoder's first step, which is the same for every text head."""

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return _bytes([self.layers, *(() if self.first is None else (self.first,))])


@dataclass(slots=True, eq=False)
class KnownPass:
    """One backbone pass as it was, of inputs that have not come again, or only all together."""

    layers: tuple[Tensor, ...]
    whole: bool
    bytes: int
    first: tuple[Tensor, ...] = ()
    firsts: Mapping[Key, int] = field(default_factory=dict)
    """The rows of `first` by input."""
    rows: dict[Key, int] = field(default_factory=dict)
    """The rows of `layers` by input, without those that moved or were replaced."""

    def blocks(self) -> int:
        """Blocks of the backbone that it went through."""
        return _blocks(len(self.layers), self.whole)

    def order(self, keys: Sequence[Key], indices: Sequence[int]) -> list[int] | None:
        """Sort the `indices` of its inputs in `keys` by their rows; None where it has rows of other inputs, too."""
        if len(indices) != len(self.layers[0]):
            return None
        return sorted(indices, key=lambda index: self.rows[keys[index]])

    def first_step(self, keys: Sequence[Key]) -> tuple[Tensor, ...]:
        """The decoder's first step of `keys`, all inputs in the order of rows, (n, 1, D); empty where some lack it."""
        return self.first if [self.firsts.get(key) for key in keys] == list(range(len(keys))) else ()

    def copy(self, key: Key) -> Known:
        """One of its inputs, in memory of its own."""
        row = self.rows[key]
        first_row = self.firsts.get(key)
        layers = torch.stack([layer[row, : len(key[1])] for layer in self.layers])
        first = None if first_row is None else torch.stack([layer[first_row] for layer in self.first])
        return Known(layers, self.whole, first)


class ActivationCache:
    """Activations by input, in at most `limit` bytes; the module says which are evicted.

    Args:
        limit: bytes of activations, counted by the memory that their tensors keep allocated. 0 keeps nothing.
    """

    def __init__(self, limit: int, metrics: Metrics | None = None) -> None:
        self.limit = limit
        self._metrics = metrics or Metrics()
        self._passes: OrderedDict[KnownPass, None] = OrderedDict()
        self._fresh: dict[Key, KnownPass] = {}
        self._kept: OrderedDict[Key, Known] = OrderedDict()
        self._fresh_bytes = self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._fresh) + len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of all that it keeps."""
        return self._fresh_bytes + self._kept_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of the inputs that came again."""
        return self._kept_bytes

    def find(self, keys: Sequence[Key], depth: int | None) -> list[Known | None]:
        """Look inputs up; None for one that is not known down to `depth` blocks (None: all, and the final state)."""
        entries = [self._find(key, depth) for key in keys]
        self._fit()  # after all look-ups: an input that is moved must not evict the next one
        hits = sum(entry is not None for entry in entries)
        self._metrics.cache_looked_up(hits, len(entries) - hits)
        self._gauge()
        return entries

    def find_passes(self, keys: Sequence[Key], depth: int | None) -> list[tuple[list[int], KnownPass]]:
        """Find the passes that computed `keys` and nothing else, each with the indices of its inputs by their rows.

        Empty where an input is not known down to `depth`, has come again alone, or was computed beside another one;
        where the passes are so small that their inputs are better read together; and for one input, which is worth its
        copy: new inputs do not evict it.
        """
        if len(keys) < 2:
            return []
        found: dict[KnownPass, list[int]] = {}
        for index, key in enumerate(keys):
            if (fresh := self._fresh.get(key)) is None:
                return []
            found.setdefault(fresh, []).append(index)
        if len(found) > 1 and len(keys) < ROWS_APART * len(found):
            return []
        passes = []
        for fresh, indices in found.items():
            ordered = fresh.order(keys, indices)
            if ordered is None or not _enough(fresh.blocks(), fresh.whole, depth):
                return []
            passes.append((ordered, fresh))
        return passes

    def use(self, passes: Sequence[KnownPass]) -> None:
        """Count the inputs of passes as found, and the passes as the newest."""
        for fresh in passes:
            self._passes.move_to_end(fresh)
        self._metrics.cache_looked_up(sum(len(fresh.rows) for fresh in passes), 0)

    def keep(self, keys: Sequence[Key], taps: Taps, first: Taps | None = None, first_keys: Sequence[Key] = ()) -> None:
        """Keep a pass over `keys`, in that order; only its first inputs where there is no room for all.

        Args:
            first: the decoder's first step of the inputs `first_keys`, in that order.
        """
        layers = layers_of(taps)
        room = self.limit - self._kept_bytes
        first_layers = () if first is None else layers_of(first)
        if (size := _bytes((*layers, *first_layers))) > room:
            count = len(keys) * room // size
            keys = keys[:count]
            layers = tuple(layer[:count].clone() for layer in layers)
            if _bytes((*layers, *first_layers)) > room:
                first_layers = ()
            size = _bytes((*layers, *first_layers))
        if not keys or size > room:
            return
        firsts = {key: row for row, key in enumerate(first_keys)} if first_layers else {}
        fresh = KnownPass(layers, taps.final is not None, size, first_layers, firsts)
        for row, key in enumerate(keys):
            self._replace(key)
            fresh.rows[key], self._fresh[key] = row, fresh
        self._passes[fresh] = None
        self._fresh_bytes += size
        self._fit()
        self._gauge()

    def add_first(self, key: Key, first: Tensor) -> None:
        """Keep the decoder's first step (M, 1, D) of an input that `find` found; the tensor must be no view."""
        known = self._kept.get(key)
        if known is not None and known.first is None:
            known.first = first
            self._kept_bytes += _bytes([first])
            self._fit()

    def clear(self, cause: str = "memory") -> None:
        """Evict everything."""
        self._metrics.cache_evicted(cause, len(self))
        self._passes.clear()
        self._fresh.clear()
        self._kept.clear()
        self._fresh_bytes = self._kept_bytes = 0
        self._gauge()

    def _find(self, key: Key, depth: int | None) -> Known | None:
        known = self._kept.get(key)
        if known is not None:
            self._kept.move_to_end(key)
            return known if _enough(_blocks(len(known.layers), known.whole), known.whole, depth) else None
        fresh = self._fresh.get(key)
        if fresh is None or not _enough(fresh.blocks(), fresh.whole, depth):
            return None
        known = fresh.copy(key)
        if known.bytes <= KEPT_SHARE * self.limit:
            self._leave_pass(key)
            self._kept[key] = known
            self._kept_bytes += known.bytes
        return known

    def _replace(self, key: Key) -> None:
        """Evict what is known of an input, for a deeper pass over it."""
        known = self._kept.pop(key, None)
        if known is not None:
            self._kept_bytes -= known.bytes
        elif key in self._fresh:
            self._leave_pass(key)
        else:
            return
        self._metrics.cache_evicted("replaced", 1)

    def _leave_pass(self, key: Key) -> None:
        fresh = self._fresh.pop(key)
        del fresh.rows[key]
        if not fresh.rows:
            del self._passes[fresh]
            self._fresh_bytes -= fresh.bytes

    def _fit(self) -> None:
        while self._kept_bytes > KEPT_SHARE * self.limit:
            _, known = self._kept.popitem(last=False)
            self._kept_bytes -= known.bytes
            self._metrics.cache_evicted("kept", 1)
        while self.bytes > self.limit:
            fresh, _ = self._passes.popitem(last=False)
            self._fresh_bytes -= fresh.bytes
            for key in fresh.rows:
                del self._fresh[key]
            self._metrics.cache_evicted("fresh", len(fresh.rows))

    def _gauge(self) -> None:
        self._metrics.cache_bytes.set(self.bytes)
        self._metrics.cache_entries.set(len(self))


def _blocks(layers: int, whole: bool) -> int:
    return layers - 1 - whole


def _enough(blocks: int, whole: bool, depth: int | None) -> bool:
    return whole or (depth is not None and blocks >= depth)


def _bytes(tensors: Sequence[Tensor]) -> int:
    """The memory that tensors keep allocated: for a view, all of its storage."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
