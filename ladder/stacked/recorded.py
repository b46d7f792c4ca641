"""Side encoders and first decoder steps of stacked side networks, recorded for a bounded set of shapes.

The rows of a batch may be of any side networks: their weights are gathered into memory that the recordings read, a
copy for each row, or one where all rows are of one side network.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladder.backbone.compiled import Shape
from ladder.backbone.model import Taps
from ladder.backbone.recorded import next_shape
from ladder.backbone.recordings import Recorder, Recording, Values
from ladder.config import SideConfig
from ladder.stacked.grouping import Grouping, Run
from ladder.stacked.layout import StackShape, layout_of
from ladder.stacked.network import StackedBatch, StackedSide
from ladder.stacked.products import Buckets, Chunk

MOST = 256
"""Recordings of one object; what comes after them runs eagerly."""


@dataclass(eq=False)
class _Weights:
    """Fixed memory for the weights of a batch."""

    chunk: Chunk
    held: Sequence[StackedSide] = ()
    """Whose weights it has now. Their slots are not given to others meanwhile."""

    def gather(self, sides: Sequence[StackedSide]) -> None:
        if list(self.held) != list(sides):
            self.held = ()
            torch.stack([side.chunk.rows[side.slot] for side in sides], out=self.chunk.rows[: len(sides)])
            self.held = list(sides)


@dataclass(eq=False)
class RecordedSides:
    """Used by `StackedBatch` for the side networks of a `SideBank` that has it.

    A thread that comes while another one computes gets None, so it computes eagerly.

    Args:
        shapes: (rows, tokens) to record, when a batch of that shape first comes.
    """

    recorder: Recorder
    shapes: Sequence[Shape]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _weights: dict[tuple[StackShape, int], _Weights] = field(default_factory=dict)
    _made: dict[object, Recording] = field(default_factory=dict)

    def encode(self, sides: Sequence[StackedSide], taps: Taps, inputs: Sequence[int] | None) -> Tensor | None:
        """As `StackedBatch.encode` of these rows; None where the batch is of no recorded shape."""
        shape = sides[0].shape
        tokens = taps.mask.shape[1]
        fits = None if shape.visual else next_shape(self.shapes, len(sides), tokens)
        if fits is None:
            return None
        layers = (taps.embeddings, *(taps.blocks[layer] for layer in shape.encoder_layers), taps.mask)
        read = [layer if inputs is None else _rows(layer, inputs) for layer in layers]

        def compute(batch: StackedBatch) -> Callable[..., Values]:
            return lambda *fixed: (batch.encode(_taps(fixed[:-1], shape.encoder_layers, fixed[-1])),)

        return self._run("encode", sides, fits, read, [(*fits, layer.shape[-1]) for layer in layers[:-1]], compute)

    def first_step(
        self,
        sides: Sequence[StackedSide],
        taps: Taps,
        memory: Tensor,
        mask: Tensor,
        inputs: Sequence[int] | None,
    ) -> Tensor | None:
        """As `StackedBatch.decode` of one token without a cache; None where the batch is of no recorded shape."""
        shape = sides[0].shape
        fits = None if shape.visual else next_shape(self.shapes, len(sides), mask.shape[1])
        if fits is None or taps.mask.shape[1] != 1:
            return None
        rungs = shape.decoder_layers or ()
        layers = (taps.embeddings, *(taps.blocks[layer] for layer in rungs))
        read = [*(layer if inputs is None else _rows(layer, inputs) for layer in layers), memory, mask]

        def compute(batch: StackedBatch) -> Callable[..., Values]:
            def decode(*fixed: Tensor) -> Values:
                one = torch.ones_like(fixed[-1][:, :1])
                return (batch.decode(_taps(fixed[:-2], rungs, one), fixed[-2], fixed[-1]),)

            return decode

        sizes = [*((fits[0], 1, layer.shape[-1]) for layer in layers), (*fits, memory.shape[-1])]
        return self._run("first step", sides, fits, read, sizes, compute)

    def _run(
        self,
        what: str,
        sides: Sequence[StackedSide],
        fits: Shape,
        read: Sequence[Tensor],
        sizes: Sequence[tuple[int, ...]],
        compute: Callable[[StackedBatch], Callable[..., Values]],
    ) -> Tensor | None:
        """Replay the recording of the batch's shape for `read`, the last of which is its mask."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            recording = self._recording(what, sides, fits, read[0].new_zeros, sizes, compute)
            if recording is None:
                return None
            [found] = recording.run(read)
            return found[: len(sides), : min(found.shape[1], read[-1].shape[1])].clone()
        finally:
            self._lock.release()

    def _recording(
        self,
        what: str,
        sides: Sequence[StackedSide],
        fits: Shape,
        new: Callable[[tuple[int, ...]], Tensor],
        sizes: Sequence[tuple[int, ...]],
        compute: Callable[[StackedBatch], Callable[..., Values]],
    ) -> Recording | None:
        """The recording of this shape, with the weights of `sides` in place; made where it is new."""
        together = all(side is sides[0] for side in sides)
        weights = self._weights_of(sides[0], 1 if together else max(rows for rows, _ in self.shapes))
        weights.gather(sides[:1] if together else sides)
        key = (what, sides[0].shape, together, fits)
        if key not in self._made and len(self._made) < MOST:
            inputs = [new(size) for size in sizes]
            mask = inputs[0].new_ones(fits, dtype=torch.bool)
            batch = fixed_batch(weights.chunk, sides[0].config, fits[0], together=together)
            self._made[key] = Recording.of(self.recorder, compute(batch), (*inputs, mask))
        return self._made.get(key)

    def _weights_of(self, side: StackedSide, slots: int) -> _Weights:
        key = (side.shape, slots)
        if key not in self._weights:
            # a buffer of zeros, so that rows of padding compute finite numbers
            rows = side.chunk.rows.new_zeros(slots, layout_of(side.shape).size)
            self._weights[key] = _Weights(Chunk(-1, side.shape, rows, Buckets()))
        return self._weights[key]


def fixed_batch(chunk: Chunk, config: SideConfig, rows: int, *, together: bool) -> StackedBatch:
    """Make a batch on a chunk whose slots stay where they are: of the first slot, or of a slot for each row."""
    sides = [StackedSide(config, chunk, 0 if together else slot, None) for slot in range(rows)]
    run = Run(chunk, 0, 1, 1, rows, 0) if together else Run(chunk, 0, 1, rows, 1, 0)
    return StackedBatch(sides, Grouping(range(rows), [run]))


def _taps(layers: Sequence[Tensor], blocks: Sequence[int], mask: Tensor) -> Taps:
    """Taps that have only `blocks`; the others are empty."""
    embeddings, *kept = layers
    where = dict(zip(blocks, kept, strict=True))
    empty = embeddings[:0]
    return Taps(
        embeddings=embeddings,
        blocks=tuple(where.get(block, empty) for block in range(max(blocks, default=-1) + 1)),
        mask=mask,
    )


def _rows(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    if len(set(rows)) == 1:
        return tensor[rows[0] : rows[0] + 1].expand(len(rows), *tensor.shape[1:])
    if list(rows) == list(range(len(tensor))):
        return tensor
    return tensor.index_select(0, torch.tensor(rows, device=tensor.device))
