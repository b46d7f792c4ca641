"""Activations of a batch's inputs: those the cache knows, and one backbone pass for the rest. Device thread only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ladder.backbone import Backbone, BackbonePass, Division, Part, RecordedBackbone, Taps, padded
from serving.engine.activation_cache import ActivationCache, Key, Known, layers_of
from serving.metrics import Metrics

LEFT_OUT_COST = 0.15
"""Cost of a token of padding that the encoder leaves out (a real token: 1). Side networks and decoders compute it."""

Encode = Callable[[Tensor, Tensor, int | None], Taps]
"""`Backbone.encode`, or a compiled or recorded one: (B, S) ids, mask, depth."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Some inputs of a batch that are read together."""

    inputs: tuple[int, ...]
    """Their indices in the batch, in the order of the pass."""
    backbone_pass: BackbonePass
    known: frozenset[int] = frozenset()
    """Indices of the inputs that the cache knew."""


class CachedBackbone:
    """One backbone behind its cache.

    Args:
        encode: runs the encoder instead of the backbone, such as a compiled one.
    """

    def __init__(
        self, backbone: Backbone, cache: ActivationCache, metrics: Metrics, encode: Encode | None = None
    ) -> None:
        self.backbone = backbone
        self.cache = cache
        self._metrics = metrics
        self._encode_whole = encode or backbone.encode
        self._divides = encode is None and backbone.device.type == "cpu"  # a GPU's launches cost more than padding

    @property
    def padding_cost(self) -> float:
        """Cost of a token of padding; a real token costs 1."""
        return LEFT_OUT_COST if self._divides else 1.0

    def read(self, keys: Sequence[Key], depth: int | None, needs_first_step: Sequence[int]) -> list[Reading]:
        """Get the activations of distinct inputs; as several readings where their lengths differ too much.

        Args:
            depth: blocks that are needed (None: all, and the final state).
            needs_first_step: indices of the inputs whose first decoder step must be included.
        """
        if again := self._read_again(keys, depth, needs_first_step):
            return again
        known = self._find(keys, depth)
        everything = tuple(range(len(keys)))
        missing = [index for index in everything if index not in known]
        division = self._division([len(keys[index][1]) for index in missing], whole=bool(known))
        fresh = self._run([keys[index] for index in missing], depth, division) if missing else []
        if known:
            taps = fresh[0] if fresh else None
            joined = self._backbone_pass(keys, known, taps, depth, needs_first_step)
            return [Reading(everything, joined, frozenset(known))]
        readings = []
        chosen = set(needs_first_step)
        for group, taps in zip(division.groups, fresh, strict=True):
            rows = [row for row, index in enumerate(group.rows) if index in chosen]
            group_keys = [keys[index] for index in group.rows]
            readings.append(Reading(group.rows, self._backbone_pass(group_keys, {}, taps, depth, rows)))
        return readings

    def _read_again(self, keys: Sequence[Key], depth: int | None, needs_first_step: Sequence[int]) -> list[Reading]:
        """Read passes that the cache has just as they are wanted, without a copy; empty where it has no such ones."""
        passes = self.cache.find_passes(keys, depth) if self.cache.limit else []
        if len(passes) > 1 and not self._divides:
            return []
        readings, needed = [], set(needs_first_step)
        for indices, fresh in passes:
            inputs = [keys[index] for index in indices]
            taps = _taps(fresh.layers, _mask(inputs, fresh.layers[0]), whole=fresh.whole)
            backbone_pass = BackbonePass(self.backbone, taps)
            if not needed.isdisjoint(indices):
                if not (first := fresh.first_step(inputs)):
                    return []
                backbone_pass.preset(_taps(first, taps.mask.new_ones(len(indices), 1), whole=True))
            readings.append(Reading(tuple(indices), backbone_pass, frozenset(indices)))
        self.cache.use([fresh for _, fresh in passes])
        return readings

    def _backbone_pass(
        self,
        keys: Sequence[Key],
        known: Mapping[int, Known],
        fresh: Taps | None,
        depth: int | None,
        needs_first_step: Sequence[int],
    ) -> BackbonePass:
        """A pass over all of `keys`, in their order; `fresh` are the taps of those that are not known."""
        missing = [index for index in range(len(keys)) if index not in known]
        taps = fresh if fresh and not known else self._join(keys, known, fresh, depth)
        backbone_pass = BackbonePass(self.backbone, taps)
        known_first = {index: known[index].first for index in needs_first_step if index in known}
        missing_first_step = [index for index in needs_first_step if known_first.get(index) is None]
        first = self._decode(backbone_pass, missing_first_step) if missing_first_step else None
        if first and len(missing_first_step) == backbone_pass.rows:
            backbone_pass.preset(first)
        elif needs_first_step:
            backbone_pass.preset(_first_step(backbone_pass.rows, known_first, first, missing_first_step))
        self._remember(keys, missing, fresh, missing_first_step, first)
        return backbone_pass

    def _find(self, keys: Sequence[Key], depth: int | None) -> dict[int, Known]:
        """What the cache has, by index."""
        entries = self.cache.find(keys, depth) if self.cache.limit else []
        return {index: entry for index, entry in enumerate(entries) if entry is not None}

    def _division(self, lengths: Sequence[int], whole: bool) -> Division:
        """Divide inputs of these lengths; `whole`: in one group."""
        everything = [Part(tuple(range(len(lengths))), max(lengths, default=0))]
        if not (self._divides and lengths):
            return Division(everything, everything)
        division = Division.of(lengths)
        return replace(division, groups=everything) if whole else division

    def _run(self, keys: Sequence[Key], depth: int | None, division: Division) -> list[Taps]:
        """Encode inputs; the taps of each group."""
        ids, mask = padded(self.backbone, [ids for _, ids in keys])
        self._metrics.batch(len(keys), division.tokens, division.tokens - sum(len(ids) for _, ids in keys))
        return self._encode(ids, mask, depth, division)

    def _encode(self, ids: Tensor, mask: Tensor, depth: int | None, division: Division) -> list[Taps]:
        if division.is_trivial:
            return [self._encode_whole(ids, mask, depth)]
        return self.backbone.encode_divided(ids, mask, depth, division)

    def _join(self, keys: Sequence[Key], known: Mapping[int, Known], fresh: Taps | None, depth: int | None) -> Taps:
        """Taps of all inputs; their padding is zeros."""
        lengths = [len(ids) for _, ids in keys]
        missing = [index for index in range(len(keys)) if index not in known]
        cached = {index: entry.layers for index, entry in known.items()}
        count = len(self.backbone.encoder.blocks) + 2 if depth is None else depth + 1
        layers = _joined((count, len(keys), max(lengths)), cached, layers_of(fresh) if fresh else (), missing)
        return _taps(layers, _mask(keys, layers[0]), whole=depth is None)

    def _decode(self, backbone_pass: BackbonePass, indices: Sequence[int]) -> Taps:
        """Run the first decoder step of some inputs."""
        taps = backbone_pass.select(indices).taps
        assert taps.final is not None, "the encoder stopped early; a decoder needs all of it"
        if isinstance(self._encode_whole, RecordedBackbone):
            return self._encode_whole.first_step(taps.final, taps.mask)
        start = taps.mask.new_full((len(indices), 1), self.backbone.config.decoder_start_token_id, dtype=torch.long)
        return self.backbone.decode(start, taps.final, taps.mask)

    def _remember(
        self,
        keys: Sequence[Key],
        missing: Sequence[int],
        fresh: Taps | None,
        missing_first_step: Sequence[int],
        first: Taps | None,
    ) -> None:
        """Keep what was computed.

        Args:
            fresh: taps of the inputs `missing`.
            first: the first decoder step of the inputs `missing_first_step`.
        """
        if not self.cache.limit:
            return
        new = set(missing)
        rows = [row for row, index in enumerate(missing_first_step) if index in new]
        if fresh:
            kept = first if first and rows else None
            if kept and len(rows) < len(missing_first_step):
                kept = kept.select(torch.tensor(rows, device=kept.mask.device))
            first_keys = [keys[missing_first_step[row]] for row in rows]
            self.cache.keep([keys[index] for index in missing], fresh, kept, first_keys)
        for row, index in enumerate(missing_first_step):
            if first and index not in new:
                self.cache.add_first(keys[index], torch.stack([layer[row] for layer in layers_of(first)]))


def _first_step(rows: int, known: Mapping[int, Tensor | None], computed: Taps | None, indices: Sequence[int]) -> Taps:
    """Taps of all inputs' first decoder step: known ones, `computed` ones of `indices`, zeros where none is needed."""
    cached = {index: first for index, first in known.items() if first is not None}
    layers = layers_of(computed) if computed else ()
    joined = _joined((len(layers) or len(next(iter(cached.values()))), rows, 1), cached, layers, indices)
    return _taps(joined, torch.ones(rows, 1, dtype=torch.bool, device=joined.device), whole=True)


def _joined(
    shape: tuple[int, int, int], cached: Mapping[int, Tensor], others: Sequence[Tensor], indices: Sequence[int]
) -> Tensor:
    """Join layers (N', s, D) of some rows with `others`, the layers of the rows `indices`; zeros elsewhere.

    Args:
        shape: (N, B, S).
    Returns:
        (N, B, S, D).
    """
    if shape[1] == 1 and cached:
        return cached[0][: shape[0], None]  # one input that is known: nothing to copy
    sample = others[0] if others else next(iter(cached.values()))
    joined = sample.new_empty(*shape, sample.shape[-1])
    rows = torch.tensor(indices, dtype=torch.long, device=joined.device)
    for layer, other in zip(joined, others, strict=False):  # the pass may be deeper than what is needed
        layer[rows, : other.shape[1]] = other
        layer[rows, other.shape[1] :] = 0
    for index, layers in cached.items():
        joined[:, index, : layers.shape[1]] = layers[: shape[0]]
        joined[:, index, layers.shape[1] :] = 0
    if rest := [index for index in range(shape[1]) if index not in cached and index not in indices]:
        joined[:, rest] = 0
    return joined


def _mask(keys: Sequence[Key], layer: Tensor) -> Tensor:
    """The real tokens of inputs whose layers are (B, S, D): (B, S) bool."""
    lengths = torch.tensor([len(ids) for _, ids in keys], device=layer.device)
    return torch.arange(layer.shape[1], device=layer.device) < lengths[:, None]


def _taps(layers: Tensor | Sequence[Tensor], mask: Tensor, *, whole: bool) -> Taps:
    embeddings, *blocks = layers
    final = blocks.pop() if whole else None
    return Taps(embeddings=embeddings, blocks=tuple(blocks), mask=mask, final=final)
