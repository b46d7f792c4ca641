"""Texts for rows of different side networks together: one backbone decoder step for all of them.

Cached; equal to decoding each row alone without a cache, and to Hugging Face's generate on the same logits.
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
        chosen = [segment for segment in segments if (segment.generation.num_beams > 1) is group]
        if chosen:
            loop(backbone, chosen, decoded)
    return [decoded[segment] for segment in segments]


def _one_by_one(backbone: Backbone, segments: Sequence[Segment], decoded: dict[Segment, Decoded]) -> None:
    running = RunningRows(backbone)
    places: dict[RunningRow, tuple[Segment, int]] = {}
    for segment in segments:
        rows = _rows(segment)
        places |= {row: (segment, place) for place, row in enumerate(rows)}
        running.join(rows, BackbonePass(backbone, segment.taps), range(len(rows)))
    while not running.is_idle:
        for said in running.step():
            if said.ending is not None:
                segment, place = places[said.row]
                decoded[segment][place] = said.ending


def _rows(segment: Segment) -> list[RunningRow]:
    how, device = segment.generation, segment.taps.mask.device
    seeds = segment.seeds or [how.seed] * len(segment)
    return [
        RunningRow(side=segment.side, limit=segment.limit, generation=how, random=random_numbers(how, seed, device))
        for seed in seeds
    ]


def _beams(backbone: Backbone, segments: Sequence[Segment], decoded: dict[Segment, Decoded]) -> None:
    search = BeamSearch(backbone, segments)
    while not search.is_idle:
        for segment, place, ending in search.step():
            decoded[segment][place] = ending
