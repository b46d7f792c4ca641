"""Side networks of one shape as one computation: rows of any of them, in any order, at the cost of one network's.

The weights are in chunks, a row of numbers for each side network (see `ladder.stacked.layout`), and batched matrix
products read them as views. Equal to the modules but for rounding. Never trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ladder.backbone.images import Images
from ladder.backbone.kv_cache import CrossKV, DecoderCache, KeyValues
from ladder.backbone.layers import causal_bias, gelu_tanh, padding_bias, rms_normalized
from ladder.backbone.model import Taps
from ladder.backbone.rows import adjacent
from ladder.config import SideConfig
from ladder.side.network import SideNetwork, mean_of_words
from ladder.side.pairs import pairs_of
from ladder.side.visual import images_of, memory_mask, pooled
from ladder.stacked.grouping import Gather, Grouping, group_rows
from ladder.stacked.heads import Head, StackedLinear
from ladder.stacked.layout import StackShape, layout_of
from ladder.stacked.products import Chunk, Products
from ladder.stacked.shared_reads import SharedReads


@dataclass(frozen=True, eq=False)
class StackedSide:
    """A side network in a slot, which is free again when this object is gone. Used like a `SideNetwork`."""

    config: SideConfig
    chunk: Chunk
    slot: int
    head: Head | None
    """None: a text head, which is the backbone's."""
    recorded: "Recorded | None" = None
    """What computes batches of recorded shapes; None: all run eagerly."""

    @property
    def shape(self) -> StackShape:
        """What it has in common with the side networks of its chunk."""
        return self.chunk.shape

    @property
    def encoder_depth(self) -> int | None:
        """Backbone encoder blocks that it needs; None: all, and the decoder (text head)."""
        layers = self.shape.encoder_layers
        return None if self.config.has_decoder else (layers[-1] + 1 if layers else 0)

    @property
    def bytes(self) -> int:
        """Bytes of its weights on the device."""
        return self.chunk.rows[self.slot].nbytes + (self.head.bytes if self.head else 0)

    def encode(self, taps: Taps, inputs: Sequence[int] | None = None, images: Images | None = None) -> Tensor:
        """As `SideNetwork.encode`, but without the final norm's weight, which is folded into what follows."""
        rows = len(taps.mask) if inputs is None else len(inputs)
        return StackedBatch([self] * rows).encode(taps, inputs, images)

    def decode(self, taps: Taps, memory: Tensor, memory_mask: Tensor, cache: DecoderCache | None = None) -> Tensor:
        """As `SideNetwork.decode`, of a memory from `encode`."""
        return StackedBatch([self] * len(taps.mask)).decode(taps, memory, memory_mask, cache)

    def memory_mask(self, taps: Taps, inputs: Sequence[int] | None = None, images: Images | None = None) -> Tensor:
        """As `SideNetwork.memory_mask`."""
        return memory_mask(self.config.visual, taps, inputs, images)

    def read(self, memory: Tensor, mask: Tensor, pairs: Tensor | None = None) -> Tensor:
        """As `SideNetwork.read`, of a memory from `encode`."""
        assert self.head is not None
        return self.head.read(memory, mask, pairs)

    def read_tokens(self, memory: Tensor) -> Tensor:
        """As `SideNetwork.read_tokens`, of a memory from `encode`."""
        assert isinstance(self.head, StackedLinear)
        return self.head.of_tokens(memory)

    def read_all(
        self, memory: Tensor, taps: Taps, inputs: Sequence[int] | None = None, images: Images | None = None
    ) -> Tensor:
        """As `SideNetwork.read_all`, of a memory from `encode`."""
        mask = self.memory_mask(taps, inputs, images)
        outputs = self.read(memory, mask, pairs_of(self.config, taps, mask))
        if isinstance(self.head, StackedLinear) and self.head.words is not None:
            outputs = outputs + self.head.of_words(mean_of_words(taps, inputs))
        return outputs

    def decoder_cache(self) -> DecoderCache:
        """Make an empty cache for `decode`."""
        return DecoderCache(len(self.shape.decoder_layers or ()))


Side = SideNetwork | StackedSide


class Recorded(Protocol):
    """`ladder.stacked.recorded.RecordedSides`. Both methods return None for a batch of no recorded shape."""

    def encode(self, sides: Sequence[StackedSide], taps: Taps, inputs: Sequence[int] | None) -> Tensor | None:
        """As `StackedBatch.encode` of rows without images."""
        ...

    def first_step(
        self, sides: Sequence[StackedSide], taps: Taps, memory: Tensor, mask: Tensor, inputs: Sequence[int] | None
    ) -> Tensor | None:
        """As `StackedBatch.decode` of one token without a cache."""
        ...


class StackedBatch:
    """Rows of side networks of one shape, and which row is whose. Made for one batch; holds its side networks.

    Computes in the order of `grouping`; rows that are given in that order save two copies.

    Args:
        sides: of each row, in any order, at least one.
        grouping: of these rows, where it is known already.
        tokens: of all rows together, for a batch that keeps nothing: where they are few, a CPU computes in float32.

    Raises:
        ValueError: side networks of several shapes.
    """

    def __init__(
        self, sides: Sequence[StackedSide], grouping: Grouping[Chunk] | None = None, tokens: int | None = None
    ) -> None:
        self.shape = sides[0].shape
        self._dtype = _fastest_dtype(sides, tokens)
        self._sides = sides
        if any(side.shape is not self.shape and side.shape != self.shape for side in sides):
            raise ValueError("side networks of different shapes cannot be computed together: make a batch of each")
        self._layout = layout_of(self.shape)
        self._device = sides[0].chunk.rows.device
        self._buckets = sides[0].chunk.buckets
        grouping = grouping or group_rows([(side.chunk, side.slot) for side in sides])
        self._order = grouping.order
        self._runs = grouping.runs
        self._products = Products(self._layout, self._runs, self._dtype)
        self._computed_index = self._row_index = None
        if adjacent(self._order) is None:
            self._computed_index = torch.tensor(self._order, device=self._device)
            self._row_index = self._computed_index.argsort()
        self._vectors = self._of_rows(self._products.vectors)[:, None]
        least = (self.shape.width * self.shape.epsilon) ** 0.5
        self._least = torch.full((), least, device=self._device)

    @property
    def layers(self) -> int:
        """Rungs of the side decoders."""
        return len(self.shape.decoder_layers or ())

    def encode(self, taps: Taps, inputs: Sequence[int] | None = None, images: Images | None = None) -> Tensor:
        """Run the side encoders: (B, S, d), for `decode` or a head, which have the final norm's weight in theirs.

        Args:
            inputs: for each row, the row of `taps` that it reads; None: row i reads row i.
            images: of these rows; None: those of the rows of `taps` that they read. Not read by networks of texts.

        Raises:
            InputsError: images are missing, or are not what the networks read.
        """
        if self.shape.visual is not None:
            return self._encode_visual(taps, inputs, images_of(taps, inputs, images))
        recorded = self._sides[0].recorded
        if recorded is not None and (memory := recorded.encode(self._sides, taps, inputs)) is not None:
            return memory
        reads = self._reads(inputs)
        state = self._start("encoder", taps, reads)
        tokens = state.shape[1]
        bias = None
        padding = padding_bias(reads.rows(taps.mask), state.dtype)
        for index, layer in enumerate(self.shape.encoder_layers):
            name = f"encoder.{index}"
            if bias is None or self.shape.own_biases:
                bias = self._relative(name, tokens, tokens) + padding
            down = reads.of_runs(self._normalized(taps.blocks[layer]))
            self._rung(name, state, down, partial(self._encoder_attend, name, bias))
        return self._to_row_order(self._norm(state))

    def _encode_visual(self, taps: Taps, inputs: Sequence[int] | None, images: Images) -> Tensor:
        """As `encode`. A side network's products with an input's taps are computed once, for all images."""
        order = self._order if inputs is None else [inputs[row] for row in self._order]
        images = images.select(self._order)
        reads = SharedReads(self._layout, self._slots, order, self._device)
        text = reads.of_rows(reads.read("encoder.start", self._normalized(taps.embeddings)))
        text = text + self._vector("encoder.start.bias")
        state = torch.cat([text, self._visual(images)], 1)
        tokens = text.shape[1]
        behind = state.shape[1] - tokens
        bias = None
        padding = padding_bias(self.memory_mask(taps, order, images), state.dtype)
        for index, layer in enumerate(self.shape.encoder_layers):
            name = f"encoder.{index}"
            if bias is None or self.shape.own_biases:
                bias = F.pad(self._relative(name, tokens, tokens), (0, behind, 0, behind)) + padding
            down = reads.of_rows(reads.read(f"{name}.down", self._normalized(taps.blocks[layer])))
            self._rung(name, state, down, partial(self._encoder_attend, name, bias))
        return self._to_row_order(self._norm(state))

    @property
    def _slots(self) -> list[tuple[Chunk, int]]:
        """The chunk and slot of each row's side network, in the order of computation."""
        return [(self._sides[row].chunk, self._sides[row].slot) for row in self._order]

    def memory_mask(self, taps: Taps, inputs: Sequence[int] | None = None, images: Images | None = None) -> Tensor:
        """As `SideNetwork.memory_mask`."""
        return memory_mask(self.shape.visual, taps, inputs, images)

    def cross_kv(self, memory: Tensor) -> CrossKV:
        """Compute each side decoder rung's keys and values of a `memory` (B, S, d) from `encode`."""
        if not self.layers:
            return []
        projected = self._to_row_order(self._products.matmul("decoder.memory", self._to_computed_order(memory)))
        pairs = projected.unflatten(2, (self.layers, 2, self.shape.heads, -1)).permute(2, 3, 0, 4, 1, 5)
        return [(keys, values) for keys, values in pairs]

    def decode(
        self,
        taps: Taps,
        memory: Tensor,
        memory_mask: Tensor,
        cache: DecoderCache | None = None,
        inputs: Sequence[int] | None = None,
    ) -> Tensor:
        """Run the side decoders and upsample: (B, T, D), ready for `Backbone.logits`.

        Args:
            taps: the backbone decoder's, for the new tokens.
            memory: (B, S, d), from `encode`. Not read where the cache has its keys and values.
            memory_mask: (B, S) bool.
            cache: extended in place; from `decoder_cache`. Its rows are in the order of `sides`.
            inputs: for each row, the row of `taps` that it reads; None: row i reads row i.
        """
        recorded = None if cache else self._sides[0].recorded
        if recorded and (states := recorded.first_step(self._sides, taps, memory, memory_mask, inputs)) is not None:
            return states
        reads = self._reads(inputs)
        state = self._start("decoder", taps, reads)
        memory = memory.to(self._dtype)
        queries = state.shape[1]
        bias = None
        keys = (cache.length if cache else 0) + queries
        visible = self._visible(queries, keys, state.dtype, cache)
        cross_kv = self._cached_cross_kv(memory, cache)
        memory_bias = padding_bias(memory_mask, state.dtype)
        for index, layer in enumerate(self.shape.decoder_layers or ()):
            name = f"decoder.{index}"
            if visible is not None and (bias is None or self.shape.own_biases):
                bias = self._to_row_order(self._relative(name, queries, keys)) + visible
            self_attention = partial(self._decoder_attend, name, bias, cache.own[index] if cache else None)
            cross_attention = partial(self._cross_attend, name, memory_bias, *cross_kv[index])
            down = reads.of_runs(self._normalized(taps.blocks[layer]))
            self._rung(name, state, down, self_attention, cross_attention)
        if cache:
            cache.length = keys
        upsampled = self._products.matmul("upsample", self._norm(state))
        return self._to_row_order(upsampled.add_(self._vector("upsample.bias")))

    def decoder_cache(self) -> DecoderCache:
        """Make an empty cache for `decode`."""
        return DecoderCache(self.layers)

    def _visible(self, queries: int, keys: int, dtype: torch.dtype, cache: DecoderCache | None) -> Tensor | None:
        """The mask of later tokens and of columns before a row joined, (B or 1, 1, queries, keys).

        None for a first token: it sees only itself, so its attention is its value.
        """
        if keys == 1 and cache is None:
            return None
        bias = causal_bias(queries, keys, dtype, self._device)
        return bias if cache is None or cache.valid is None else bias + padding_bias(cache.valid, dtype)

    def _cached_cross_kv(self, memory: Tensor, cache: DecoderCache | None) -> CrossKV:
        if cache is None:
            return self.cross_kv(memory)
        known = [(entry.keys, entry.values) for entry in cache.cross]
        if all(keys is None for keys, _ in known):
            return [entry.extend(*pair) for entry, pair in zip(cache.cross, self.cross_kv(memory), strict=True)]
        return [(keys, values) for keys, values in known if keys is not None and values is not None]

    def _start(self, stack: str, taps: Taps, reads: Gather) -> Tensor:
        name = f"{stack}.start"
        tokens = taps.embeddings.shape[1]
        state = self._products.matmul_runs(name, reads.of_runs(self._normalized(taps.embeddings)), tokens)
        return state.add_(self._vector(f"{name}.bias"))

    def _normalized(self, tap: Tensor) -> Tensor:
        """A tap (N, T, D) as downsamples read it: normalized once, however many side networks read it."""
        tap = tap.to(self._dtype)
        return rms_normalized(tap, self.shape.epsilon) if self.shape.tap_norm == "rms" else tap

    def _visual(self, images: Images) -> Tensor:
        """The first state of the tokens of images, (B, N, d); each side network embeds an image once.

        Args:
            images: of the rows in the order of computation.
        """
        assert self.shape.visual is not None
        images = images.only_read()
        features, boxes = pooled(images, self.shape.visual)
        count, tokens = images.most, features.shape[1]
        slots = [slot for slot in self._slots for _ in range(count)]
        reads = SharedReads(self._layout, slots, images.padded, self._device)
        least = torch.full((), (self.shape.tap_width * self.shape.epsilon) ** 0.5, device=self._device)
        embedded = []
        for name, read in (("visual.features", features), ("visual.boxes", boxes)):
            wide = reads.read(name, read.to(self._vectors.dtype)).add_(reads.vector(f"{name}.bias"))
            embedded.append(reads.matmul(f"{name}.start", _unit(wide, least)))
        state = reads.of_rows(embedded[0] + embedded[1]).reshape(len(images.rows), count * tokens, -1)
        numbers = self._of_rows(self._products.all("visual.numbers")[:, :count])
        positions = self._of_rows(self._products.all("visual.positions")[:, :tokens])
        state = state + self._vector("encoder.start.bias") + numbers.repeat_interleave(tokens, 1)
        return state + positions.repeat(1, count, 1)

    def _rung(
        self, name: str, state: Tensor, down: Sequence[Tensor] | Tensor, *attentions: Callable[[Tensor], None]
    ) -> None:
        """Compute one rung in place; each of the `attentions` adds to the state.

        Args:
            down: each run's taps or, where tokens of images follow those of the text, the downsampled taps (B, S, d).
        """
        if not self.shape.mix_after:
            self._mix(name, state, down)
        for attend in attentions:
            attend(state)
        self._feed(name, state)
        if self.shape.mix_after:
            self._mix(name, state, down)

    def _mix(self, name: str, state: Tensor, down: Sequence[Tensor] | Tensor) -> None:
        keep = self._vector(f"{name}.keep")
        bias = self._vector(f"{name}.bias")
        if isinstance(down, Tensor):
            text = state[:, : down.shape[1]]
            damped = self.shape.visual is None or self.shape.visual.damped
            (state if damped else text).mul_(keep)
            text.add_(down).add_(bias)
            return
        torch.addcmul(bias, state, keep, out=state)
        self._products.add_of(state, f"{name}.down", down)

    def _encoder_attend(self, name: str, bias: Tensor, state: Tensor) -> None:
        """The side encoder's self-attention."""
        projected = self._products.matmul_into(f"{name}.qkv", self._norm(state), 3 * self.shape.inner, "qkv")
        query, keys, values = map(self._split, projected.chunk(3, -1))
        self._products.add(state, f"{name}.o", self._attend(query, keys, values, bias))

    def _decoder_attend(self, name: str, bias: Tensor | None, cached: KeyValues | None, state: Tensor) -> None:
        """The side decoder's self-attention."""
        if bias is None:
            self._products.add(state, f"{name}.vo", self._norm(state))
            return
        projected = self._products.matmul(f"{name}.qkv", self._norm(state))  # no buffer: a cache may keep it
        query, keys, values = self._to_row_order(projected).chunk(3, -1)
        pair = self._split(keys), self._split(values)
        pair = cached.extend(*pair) if cached is not None else pair
        mixed = self._attend(self._split(query), *pair, bias)
        self._products.add(state, f"{name}.o", self._to_computed_order(mixed))

    def _cross_attend(self, name: str, bias: Tensor, keys: Tensor, values: Tensor, state: Tensor) -> None:
        """The side decoder's attention to the memory."""
        query = self._products.matmul_into(f"{name}.cross.q", self._norm(state), self.shape.inner, "query")
        mixed = self._attend(self._split(self._to_row_order(query)), keys, values, bias)
        self._products.add(state, f"{name}.cross.o", self._to_computed_order(mixed))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """(B, T, H * head_width) of (B, H, T, head_width)."""
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
        return mixed.transpose(1, 2).flatten(2)

    def _feed(self, name: str, state: Tensor) -> None:
        width = self.shape.hidden * (2 if self.shape.gated else 1)
        inner = self._products.matmul_into(f"{name}.wi", self._norm(state), width, "wi")
        if self.shape.gated:
            gate, value = inner.chunk(2, -1)
            inner = gelu_tanh(gate).mul_(value)
        else:
            inner.relu_()
        self._products.add(state, f"{name}.wo", inner)

    def _split(self, projected: Tensor) -> Tensor:
        """(B, T, H * head_width) to (B, H, T, head_width)."""
        return projected.unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)

    def _norm(self, state: Tensor) -> Tensor:
        """RMS norm without its weight and the square root of d, which are in the matrices that follow."""
        return _unit(state, self._least)

    def _relative(self, name: str, queries: int, keys: int) -> Tensor:
        """(B, H, queries, keys) of a rung, in the order of computation."""
        shape = self.shape
        both_ways = name.startswith("encoder")
        weights = self._products.all(f"{name if shape.own_biases else name.split('.')[0]}.relative")
        table = self._buckets.table(queries, keys, shape.buckets, shape.max_distance, both_ways, self._device)
        biases = weights.reshape(-1, shape.buckets).index_select(1, table)
        return self._of_rows(biases.view(-1, shape.heads, queries, keys))

    def _vector(self, name: str) -> Tensor:
        """(B or 1, 1, width)."""
        part = self._layout.parts[name]
        return self._vectors.narrow(2, part.start, part.stop - part.start)

    def _of_rows(self, per_side: Tensor) -> Tensor:
        """Repeat (side networks, ...) for the rows of each, in the order of computation; (1, ...) stays as it is."""
        counts = [run.rows for run in self._runs for _ in range(run.count)]
        if len(per_side) == 1 or counts == [1] * len(per_side):
            return per_side
        return per_side.repeat_interleave(torch.tensor(counts, device=self._device), 0, output_size=len(self._order))

    def _reads(self, inputs: Sequence[int] | None) -> Gather:
        reads = self._order if inputs is None else [inputs[row] for row in self._order]
        return Gather(self._runs, reads, self._device)

    def _to_row_order(self, computed: Tensor) -> Tensor:
        if self._row_index is None or len(computed) == 1:
            return computed
        return computed.index_select(0, self._row_index)

    def _to_computed_order(self, rows: Tensor) -> Tensor:
        return rows if self._computed_index is None else rows.index_select(0, self._computed_index)


FEW_TOKENS = 128
"""So many tokens of one side network take a CPU no less time in bfloat16 than in float32, with the conversion of its
weights."""


def _fastest_dtype(sides: Sequence[StackedSide], tokens: int | None) -> torch.dtype:
    """The dtype of a batch: its weights', or float32 for few tokens."""
    weights = sides[0].chunk.rows
    few = tokens is not None and tokens <= FEW_TOKENS and sides[0].shape.visual is None
    if few and weights.device.type == "cpu" and all(side is sides[0] for side in sides):
        return torch.float32
    return weights.dtype


def _unit(state: Tensor, least: Tensor) -> Tensor:
    """Divide each token's state (..., width) by its length, and by not much less than `least`."""
    length = torch.linalg.vector_norm(state, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.div(state, torch.hypot(length, least)).to(state.dtype)
