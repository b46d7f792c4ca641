"""The activation cache: a tenant's token ids -> the backbone's activations, bounded in bytes. Device thread only.

It pays where an input comes again for another task or version: a swap changes no activation, so none makes it forget.
It belongs to one engine and so to one backbone; a cache shared by several would need its fingerprint in the key.

Most inputs never come again, so keeping them must cost next to nothing. A pass is kept as it is, without a copy; such
passes leave in the order they came. An input that is asked again moves, copied and without its padding, to the entries
that leave by least recent use. These may fill at most `KEPT_SHARE`: the rest is always there for what is new.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladder.backbone import Taps
from serving.metrics import Metrics

KEPT_SHARE = 0.8
"""Of the bytes, at most, for inputs that were asked again."""

Key = tuple[str, tuple[int, ...]]
"""(salt, token ids)."""


def layers_of(taps: Taps) -> tuple[Tensor, ...]:
    """(B, S, D) each: embeddings, blocks and, where the pass ran to its end, the final state."""
    return (taps.embeddings, *taps.blocks, *(() if taps.final is None else (taps.final,)))


@dataclass(slots=True, eq=False)
class Known:
    """What is known of one input."""

    layers: Tensor
    """(N, S, D), without padding: embeddings, blocks and, where `whole`, the final state."""
    whole: bool
    first: Tensor | None = None
    """(M, 1, D), the same of the decoder's first step, which is the same for every text head."""

    @property
    def bytes(self) -> int:
        return _bytes([self.layers, *(() if self.first is None else (self.first,))])


@dataclass(slots=True, eq=False)
class _Pass:
    """One backbone pass as it was; its inputs have not been asked again."""

    layers: tuple[Tensor, ...]
    whole: bool
    bytes: int
    first: tuple[Tensor, ...] = ()
    firsts: Mapping[Key, int] = field(default_factory=dict)
    """The rows of `first` by input."""
    rows: dict[Key, int] = field(default_factory=dict)
    """The rows of `layers` by input; those that moved or were replaced are gone from it."""

    def blocks(self) -> int:
        return _blocks(len(self.layers), self.whole)

    def copy(self, key: Key) -> Known:
        row, spoken = self.rows[key], self.firsts.get(key)
        layers = torch.stack([layer[row, : len(key[1])] for layer in self.layers])
        first = None if spoken is None else torch.stack([layer[spoken] for layer in self.first])
        return Known(layers, self.whole, first)


class ActivationCache:
    """See the module.

    Args:
        limit: bytes of activations, counted as what their tensors hold on to. 0 keeps nothing.
    """

    def __init__(self, limit: int, metrics: Metrics | None = None) -> None:
        self.limit, self._metrics = limit, metrics or Metrics()
        self._passes: OrderedDict[_Pass, None] = OrderedDict()
        self._fresh: dict[Key, _Pass] = {}
        self._kept: OrderedDict[Key, Known] = OrderedDict()
        self._fresh_bytes = self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._fresh) + len(self._kept)

    @property
    def bytes(self) -> int:
        return self._fresh_bytes + self._kept_bytes

    @property
    def kept_bytes(self) -> int:
        """Of inputs that were asked again."""
        return self._kept_bytes

    def find(self, keys: Sequence[Key], depth: int | None) -> list[Known | None]:
        """What is known of each input, down to `depth` blocks at least (None: all, and the final state)."""
        found = [self._find(key, depth) for key in keys]
        self._fit()  # not before: what one input moves must not drive out the next one
        hits = sum(each is not None for each in found)
        self._metrics.cache_looked_up(hits, len(found) - hits)
        self._gauge()
        return found

    def keep(self, keys: Sequence[Key], taps: Taps, first: Taps | None = None, speaking: Sequence[Key] = ()) -> None:
        """Keep a pass over `keys`, in that order; of one too large for what room there is, its first inputs.

        Args:
            first: the decoder's first step of the inputs `speaking`, in that order.
        """
        layers, room = layers_of(taps), self.limit - self._kept_bytes
        spoken = () if first is None else layers_of(first)
        if (size := _bytes((*layers, *spoken))) > room:
            count = len(keys) * room // size
            keys, layers = keys[:count], tuple(layer[:count].clone() for layer in layers)
            if _bytes((*layers, *spoken)) > room:
                spoken = ()
            size = _bytes((*layers, *spoken))
        if not keys or size > room:
            return
        firsts = {key: row for row, key in enumerate(speaking)} if spoken else {}
        fresh = _Pass(layers, taps.final is not None, size, spoken, firsts)
        for row, key in enumerate(keys):
            self._replace(key)
            fresh.rows[key], self._fresh[key] = row, fresh
        self._passes[fresh] = None
        self._fresh_bytes += size
        self._fit()
        self._gauge()

    def add_first(self, key: Key, first: Tensor) -> None:
        """Keep the decoder's first step (M, 1, D) with an input that `find` found. The tensor should be its own."""
        known = self._kept.get(key)
        if known is not None and known.first is None:
            known.first = first
            self._kept_bytes += _bytes([first])
            self._fit()

    def clear(self, cause: str = "memory") -> None:
        """Forget everything."""
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
        """A deeper pass over the same input takes its place."""
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
    """What they hold on to: of a view, all of what it looks at."""
    held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(held.values())
