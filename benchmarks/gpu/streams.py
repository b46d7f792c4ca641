"""Side networks on a second stream, which read a block's activations while the backbone computes the next block.

The paper claims it; its authors' code computes one after the other. A batch's encoder and side encoders are one
recording here, since eager calls are launched one by one, which takes longer than most of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.cli import How
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.models import HEADS, Loaded, make_residents
from benchmarks.harness.samples import Samples, Spread, Variant
from ladder import Backbone, Taps
from ladder.backbone import CudaGraphs, Rehearsal, padded
from ladder.backbone.recordings import Recording, Values
from ladder.stacked import StackedSide
from ladder.stacked.network import StackedBatch
from ladder.stacked.products import Buckets, Chunk
from ladder.stacked.recorded import fixed_batch

ONE, TWO, ALONE = "one stream", "two streams", "backbone alone"


class _Awaited(tuple[Tensor, ...]):
    """Blocks' activations; reading one makes the current stream wait for it."""

    events: Sequence[torch.cuda.Event]

    def __getitem__(self, index: Any) -> Any:
        torch.cuda.current_stream().wait_event(self.events[index])
        return super().__getitem__(index)


def alone(backbone: Backbone) -> Callable[[Tensor, Tensor], Values]:
    """The encoder without side networks."""

    def compute(ids: Tensor, mask: Tensor) -> Values:
        final = backbone.encode(ids, mask).final
        assert final is not None
        return (final,)

    return compute


def one_stream(backbone: Backbone, batch: StackedBatch) -> Callable[[Tensor, Tensor], Values]:
    """The encoder, then the side encoders."""
    return lambda ids, mask: (batch.encode(backbone.encode(ids, mask)),)


def two_streams(backbone: Backbone, batch: StackedBatch) -> Callable[[Tensor, Tensor], Values]:
    """The encoder, and beside it the side encoders, each rung as soon as its block is done."""
    aside = torch.cuda.Stream(backbone.device)

    def compute(ids: Tensor, mask: Tensor) -> Values:
        main, blocks = torch.cuda.current_stream(), backbone.encoder.blocks
        begun, done = torch.cuda.Event(), [torch.cuda.Event() for _ in blocks]
        hooks = [blocks[0].register_forward_pre_hook(lambda *_: begun.record(main))]
        for block, event in zip(blocks, done, strict=True):
            hooks.append(block.register_forward_hook(lambda *_, event=event: event.record(main)))
        try:
            taps = backbone.encode(ids, mask)
        finally:
            for hook in hooks:
                hook.remove()
        with torch.cuda.stream(aside):
            aside.wait_event(begun)
            memory = batch.encode(_awaited(taps, done))
        main.wait_stream(aside)
        return (memory, *taps.blocks)  # held: the second stream reads them until both have joined

    return compute


def _awaited(taps: Taps, events: Sequence[torch.cuda.Event]) -> Taps:
    blocks = _Awaited(taps.blocks)
    blocks.events = events
    return replace(taps, blocks=blocks)


def ask(loaded: Loaded, how: How, rows: int, tokens: int) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure batches of one task and of one task a row; without a GPU, on one stream alone."""
    on_gpu = loaded.hardware == "cuda"
    recorder = CudaGraphs(loaded.backbone.device) if on_gpu else Rehearsal()
    inputs = padded(loaded.backbone, Inputs(loaded, how.seed).rows(rows, tokens))
    computes = {ALONE: alone(loaded.backbone)}
    for name, batch in _batches(loaded, how, rows).items():
        computes[f"{name}, {ONE}"] = one_stream(loaded.backbone, batch)
        if on_gpu:
            computes[f"{name}, {TWO}"] = two_streams(loaded.backbone, batch)
    with torch.inference_mode():
        recordings = {name: Recording.of(recorder, compute, inputs) for name, compute in computes.items()}
        samples = how.turns([_variant(how, loaded, name, made, rows) for name, made in recordings.items()])
    pairs = [(name.removesuffix(TWO) + ONE, name) for name in computes if name.endswith(TWO)]
    ratios = {f"{two} / {ONE}: time": samples.ratio("ms", two, one) for one, two in pairs}
    ratios |= {f"{name} / {ALONE}: time": samples.ratio("ms", name, ALONE) for name in computes if name != ALONE}
    return samples, ratios, {"rows": rows, "tokens": tokens}


def _variant(how: How, loaded: Loaded, name: str, made: Recording, rows: int) -> Variant:
    return how.timed(name, lambda _: made.replay(), lambda: None, rows, loaded.device)


def _batches(loaded: Loaded, how: How, rows: int) -> dict[str, StackedBatch]:
    """Rows of one side network, and of one each, on fixed memory."""
    sides = [resident.side for resident in make_residents(loaded, how.size(16, 2), HEADS["linear"], how.seed)]
    held = [side for side in sides if isinstance(side, StackedSide)]
    weights = torch.stack([held[row % len(held)].chunk.rows[held[row % len(held)].slot] for row in range(rows)])
    chunk = Chunk(-1, held[0].shape, weights, Buckets())
    return {
        name: fixed_batch(chunk, held[0].config, rows, together=together)
        for name, together in (("one task", True), ("a task a row", False))
    }
