"""Activations of a batch's inputs: those the cache knows, and one backbone pass for the rest. Device thread only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ladder.backbone import Backbone, BackbonePass, Division, Part, Taps, padded
from serving.engine.activation_cache import ActivationCache, Key, Known, layers_of
from serving.metrics import Metrics

LEFT_OUT_COST = 0.15
"""Of padding that the encoder leaves out, beside a real token: side networks and decoders still compute it."""

Encode = Callable[[Tensor, Tensor, int | None], Taps]
"""`Backbone.encode`, or a compiled one: (B, S) ids, mask, depth."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Some inputs of a batch, to be read together."""

    places: tuple[int, ...]
    """Which, in the order of the pass."""
    given: BackbonePass


class CachedBackbone:
    """One backbone behind its cache.

    Args:
        encode: runs the encoder in the backbone's stead.
    """

    def __init__(
        self, backbone: Backbone, cache: ActivationCache, metrics: Metrics, encode: Encode | None = None
    ) -> None:
        self.backbone, self.cache, self._metrics = backbone, cache, metrics
        self._encode_whole = encode or backbone.encode
        self._divides = encode is None and backbone.device.type == "cpu"  # a GPU's launches cost more than padding

    @property
    def padding_cost(self) -> float:
        """What a token of padding costs beside a real one."""
        return LEFT_OUT_COST if self._divides else 1.0

    def read(self, keys: Sequence[Key], depth: int | None, speaking: Sequence[int]) -> "list[Reading]":
        """What there is to read of distinct inputs; several readings where their lengths differ too much.

        Args:
            depth: blocks that are needed (None: all, and the final state).
            speaking: places of the inputs whose first decoder step is needed; the readings have it.
        """
        known, everything = self._find(keys, depth), tuple(range(len(keys)))
        missing = [place for place in everything if place not in known]
        division = self._division([len(keys[place][1]) for place in missing], whole=bool(known))
        fresh = self._run([keys[place] for place in missing], depth, division) if missing else []
        if known:
            return [Reading(everything, self._given(keys, known, fresh[0] if fresh else None, depth, speaking))]
        readings, spoken = [], set(speaking)
        for group, taps in zip(division.groups, fresh, strict=True):
            speaks = [row for row, place in enumerate(group.rows) if place in spoken]
            own = [keys[place] for place in group.rows]
            readings.append(Reading(group.rows, self._given(own, {}, taps, depth, speaks)))
        return readings

    def _given(
        self,
        keys: Sequence[Key],
        known: Mapping[int, Known],
        fresh: Taps | None,
        depth: int | None,
        speaking: Sequence[int],
    ) -> BackbonePass:
        """A pass over all of `keys`, in their order; `fresh` are the taps of those that are not known."""
        missing = [place for place in range(len(keys)) if place not in known]
        given = BackbonePass(self.backbone, fresh if fresh and not known else self._join(keys, known, fresh, depth))
        firsts = {place: known[place].first for place in speaking if place in known}
        silent = [place for place in speaking if firsts.get(place) is None]
        said = self._decode(given, silent) if silent else None
        if said and len(silent) == given.rows:
            given.preset(said)
        elif speaking:
            given.preset(_first_step(given.rows, firsts, said, silent))
        self._remember(keys, missing, fresh, silent, said)
        return given

    def _find(self, keys: Sequence[Key], depth: int | None) -> dict[int, Known]:
        """By place."""
        found = self.cache.find(keys, depth) if self.cache.limit else []
        return {place: known for place, known in enumerate(found) if known is not None}

    def _division(self, lengths: Sequence[int], whole: bool) -> Division:
        """
        Args:
            whole: in one group.
        """
        everything = [Part(tuple(range(len(lengths))), max(lengths, default=0))]
        if not (self._divides and lengths):
            return Division(everything, everything)
        found = Division.of(lengths)
        return replace(found, groups=everything) if whole else found

    def _run(self, keys: Sequence[Key], depth: int | None, division: Division) -> list[Taps]:
        """Of each group."""
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
        missing = [place for place in range(len(keys)) if place not in known]
        own = {place: each.layers for place, each in known.items()}
        count = len(self.backbone.encoder.blocks) + 2 if depth is None else depth + 1
        layers = _joined((count, len(keys), max(lengths)), own, layers_of(fresh) if fresh else (), missing)
        columns = torch.arange(max(lengths), device=layers.device)
        return _taps(layers, columns < torch.tensor(lengths, device=layers.device)[:, None], whole=depth is None)

    def _decode(self, given: BackbonePass, places: Sequence[int]) -> Taps:
        """The first decoder step of some inputs."""
        taps = given.select(places).taps
        assert taps.final is not None, "the encoder stopped early; a decoder needs all of it"
        start = taps.mask.new_full((len(places), 1), self.backbone.config.decoder_start_token_id, dtype=torch.long)
        return self.backbone.decode(start, taps.final, taps.mask)

    def _remember(
        self, keys: Sequence[Key], missing: Sequence[int], fresh: Taps | None, silent: Sequence[int], said: Taps | None
    ) -> None:
        if not self.cache.limit:
            return
        new = set(missing)
        rows = [row for row, place in enumerate(silent) if place in new]
        if fresh:
            first = said if said and rows else None
            if first and len(rows) < len(silent):
                first = first.select(torch.tensor(rows, device=first.mask.device))
            self.cache.keep([keys[place] for place in missing], fresh, first, [keys[silent[row]] for row in rows])
        for row, place in enumerate(silent):
            if said and place not in new:
                self.cache.add_first(keys[place], torch.stack([layer[row] for layer in layers_of(said)]))


def _first_step(rows: int, known: Mapping[int, Tensor | None], said: Taps | None, silent: Sequence[int]) -> Taps:
    """Taps of every input's first decoder step, from the cache and from `said`; zeros where none is needed."""
    own = {place: first for place, first in known.items() if first is not None}
    layers = layers_of(said) if said else ()
    joined = _joined((len(layers) or len(next(iter(own.values()))), rows, 1), own, layers, silent)
    return _taps(joined, torch.ones(rows, 1, dtype=torch.bool, device=joined.device), whole=True)


def _joined(
    shape: tuple[int, int, int], own: Mapping[int, Tensor], others: Sequence[Tensor], places: Sequence[int]
) -> Tensor:
    """(N, B, S, D) of `shape` (N, B, S): layers (N', s, D) of some places, and rows of `others` for other `places`.

    Zeros elsewhere.
    """
    if shape[1] == 1 and own:
        return own[0][: shape[0], None]  # one input that is known: nothing to copy
    sample = others[0] if others else next(iter(own.values()))
    joined = sample.new_empty(*shape, sample.shape[-1])
    rows = torch.tensor(places, dtype=torch.long, device=joined.device)
    for layer, other in zip(joined, others, strict=False):  # the pass may be deeper than what is asked
        layer[rows, : other.shape[1]] = other
        layer[rows, other.shape[1] :] = 0
    for place, layers in own.items():
        joined[:, place, : layers.shape[1]] = layers[: shape[0]]
        joined[:, place, layers.shape[1] :] = 0
    if unasked := [place for place in range(shape[1]) if place not in own and place not in places]:
        joined[:, unasked] = 0
    return joined


def _taps(layers: Tensor, mask: Tensor, *, whole: bool) -> Taps:
    embeddings, *blocks = layers
    final = blocks.pop() if whole else None
    return Taps(embeddings=embeddings, blocks=tuple(blocks), mask=mask, final=final)
