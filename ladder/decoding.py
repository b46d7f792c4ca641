"""Texts for rows of different side networks together: one backbone decoder step for all of them.

Cached; equal to decoding each row alone without a cache, and to Hugging Face's generate on the same logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ladder.backbone import Backbone, Taps
from ladder.beam import beam_search
from ladder.scores import adjust, draw
from ladder.segments import Decoded, Segment, joined, rows_of

__all__ = ["Segment", "generate"]


@torch.inference_mode()
def generate(backbone: Backbone, segments: Sequence[Segment]) -> list[Decoded]:
    """Decode every row of every segment until its end token or its segment's limit.

    Greedy and sampled rows share one loop, beams another.

    Returns:
        For each segment, its rows' tokens without start and end tokens; an exception in place of a row that failed.
    """
    single = [segment for segment in segments if segment.generation.num_beams == 1]
    several = [segment for segment in segments if segment.generation.num_beams > 1]
    decoded: dict[Segment, Decoded] = {}
    for group, loop in ((single, _one_by_one), (several, beam_search)):
        if group:
            decoded.update(zip(group, loop(backbone, group), strict=True))
    return [decoded[segment] for segment in segments]


def _one_by_one(backbone: Backbone, segments: Sequence[Segment]) -> list[Decoded]:
    """One token for every row at a time, the likeliest or a drawn one."""
    final, mask = joined(segments)
    generators = [segment.guarded(_generators, segment) or [] for segment in segments]
    for segment in segments:
        segment.guarded(segment.begin)
    config, cache = backbone.config, backbone.decoder_cache()
    said = torch.full((len(mask), 1), config.decoder_start_token_id, device=mask.device)
    limits = torch.cat([torch.full((len(segment),), segment.limit, device=mask.device) for segment in segments])
    done = limits < 1
    while not bool(done.all()):
        taps = backbone.decode(said[:, -1:], final, mask, cache)
        following, start = [], 0
        for segment, own in zip(segments, generators, strict=True):
            rows = slice(start, start + len(segment))
            start = rows.stop
            tokens = segment.guarded(_next_tokens, backbone, segment, rows_of(taps, rows), said[rows], done[rows], own)
            if tokens is None:
                tokens = torch.full((len(segment),), config.eos_token_id, device=mask.device)
            following.append(tokens)
        said = torch.cat([said, torch.cat(following).masked_fill(done, config.pad_token_id)[:, None]], 1)
        done = done | (said[:, -1] == config.eos_token_id) | (limits < said.shape[1])
        done = done | torch.cat([segment.failed for segment in segments])
    texts = iter(said[:, 1:].tolist())
    return [segment.finish([next(texts) for _ in range(len(segment))], config.eos_token_id) for segment in segments]


def _next_tokens(
    backbone: Backbone,
    segment: Segment,
    taps: Taps,
    said: Tensor,
    done: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """(rows,) the next token of each of its rows; those of rows that are `done` mean nothing."""
    state = segment.side.decode(taps, segment.memory, segment.memory_mask, segment.cache)
    logits = backbone.logits(state[:, -1])
    segment.broken |= ~torch.isfinite(logits).all(-1) & ~done
    if not segment.generation.changes_scores:
        return logits.argmax(-1)
    end = backbone.config.eos_token_id
    scores = adjust(logits.float(), said, segment.generation, end)
    if not segment.generation.do_sample:
        return scores.argmax(-1)
    return draw(scores, (~done).nonzero().flatten().tolist(), generators, end)


def _generators(segment: Segment) -> list[torch.Generator]:
    """Each row's own random numbers, so that its text does not depend on its batch."""
    if not segment.generation.do_sample:
        return []
    generators = []
    for seed in segment.seeds or [segment.generation.seed] * len(segment):
        generator = torch.Generator(segment.taps.mask.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        generators.append(generator)
    return generators
