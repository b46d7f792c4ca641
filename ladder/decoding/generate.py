"""Texts of rows of different side networks, all at once: one backbone decoder step for all of them.

Equal to decoding each row alone without a cache, and to Hugging Face's generate on the same logits.
"""

from collections.abc import Sequence

import torch

from ladder.backbone.model import Backbone
from ladder.backbone.passes import BackbonePass
from ladder.decoding.beam_search import BeamSearch
from ladder.decoding.lanes import RunningRow
from ladder.decoding.loop import RunningRows, random_numbers
from ladder.decoding.segments import Decoded, Segment


@torch.inference_mode()
def generate(backbone: Backbone, segments: Sequence[Segment]) -> list[Decoded]:
    """Decode every row of every segment until its end token or its segment's limit.

    Greedy and sampled rows share one loop, beams another.

    Returns:
        For each segment, its rows' tokens without start and end tokens; an exception in place of a row that failed.
    """
    decoded: dict[Segment, Decoded] = {segment: [()] * len(segment) for segment in segments}
    for group, loop in ((False, _one_by_one), (True, _beams)):
        chosen = [segment for segment in segments if (segment.decoding.num_beams > 1) is group]
        if chosen:
            loop(backbone, chosen, decoded)
    return [decoded[segment] for segment in segments]


def _one_by_one(backbone: Backbone, segments: Sequence[Segment], decoded: dict[Segment, Decoded]) -> None:
    running = RunningRows(backbone)
    indices: dict[RunningRow, tuple[Segment, int]] = {}
    for segment in segments:
        rows = _rows(segment)
        indices |= {row: (segment, index) for index, row in enumerate(rows)}
        running.join(rows, BackbonePass(backbone, segment.taps), range(len(rows)))
    while not running.is_idle:
        for result in running.step():
            if result.ending is not None:
                segment, index = indices[result.row]
                decoded[segment][index] = result.ending


def _rows(segment: Segment) -> list[RunningRow]:
    decoding = segment.decoding
    device = segment.taps.mask.device
    return [
        RunningRow(
            side=segment.side,
            limit=segment.limit,
            decoding=decoding,
            random=random_numbers(decoding, seed, device),
        )
        for seed in segment.seeds or [decoding.seed] * len(segment)
    ]


def _beams(backbone: Backbone, segments: Sequence[Segment], decoded: dict[Segment, Decoded]) -> None:
    search = BeamSearch(backbone, segments)
    while not search.is_idle:
        for segment, index, ending in search.step():
            decoded[segment][index] = ending
