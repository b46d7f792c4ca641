"""Greedy decoding of rows of different side networks together: one backbone decoder step for all of them.

Cached; equal to decoding each row alone without a cache.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladder.backbone import Backbone, Taps
from ladder.errors import NotFiniteError
from ladder.layers import DecoderCache
from ladder.side import SideNetwork

Tokens = tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Segment:
    """Adjacent rows of one side network, while they are decoded."""

    side: SideNetwork
    taps: Taps
    """Encoder taps of its rows, padded as the other segments' are."""
    limit: int
    """Most new tokens."""
    memory: Tensor = field(init=False)
    cache: DecoderCache = field(init=False)
    failure: Exception | None = field(init=False, default=None)
    """Why all of its rows failed."""
    broken: Tensor = field(init=False)
    """(rows,) bool: those whose logits were not finite."""

    def __post_init__(self) -> None:
        self.broken = torch.zeros(len(self.taps.mask), dtype=torch.bool, device=self.taps.mask.device)


@torch.inference_mode()
def greedy(backbone: Backbone, segments: list[Segment]) -> list[list[Tokens | Exception]]:
    """Decode every row of every segment until its end token or its segment's limit.

    Returns:
        For each segment, its rows' tokens without start and end tokens; an exception in place of a row that failed.
    """
    finals = [segment.taps.final for segment in segments]
    final = torch.cat([tensor for tensor in finals if tensor is not None])
    mask = torch.cat([segment.taps.mask for segment in segments])
    for segment in segments:
        _guarded(segment, _begin)
    config, cache = backbone.config, backbone.decoder_cache()
    tokens = torch.full((len(mask), 1), config.decoder_start_token_id, device=mask.device)
    limits = torch.cat([torch.full((len(s.taps.mask),), s.limit, device=mask.device) for s in segments])
    done, said = limits < 1, []
    while not bool(done.all()):
        taps = backbone.decode(tokens, final, mask, cache)
        following = _next_tokens(backbone, segments, taps).masked_fill(done, config.pad_token_id)
        said.append(following)
        done = done | (following == config.eos_token_id) | (limits <= len(said))
        done = done | _failed_rows(segments)
        tokens = following[:, None]
    steps = torch.stack(said, 1).tolist() if said else [[] for _ in range(len(mask))]
    return _collect(segments, steps, config.eos_token_id)


def _begin(segment: Segment) -> None:
    segment.memory, segment.cache = segment.side.encode(segment.taps), segment.side.decoder_cache()


def _guarded(segment: Segment, step: Callable[..., Tensor | None], *args: object) -> Tensor | None:
    """Run a step of one segment; what it raises is that segment's alone."""
    if segment.failure is not None:
        return None
    try:
        return step(segment, *args)
    except torch.OutOfMemoryError:
        raise  # the device's fault, not this side network's
    except Exception as error:  # a side network's fault must not reach its neighbours
        segment.failure = error
        return None


def _next_tokens(backbone: Backbone, segments: list[Segment], taps: Taps) -> Tensor:
    """(rows,) the likeliest next token of every row; the end token for rows of a failed segment."""
    parts, start = [], 0
    for segment in segments:
        rows = slice(start, start + len(segment.taps.mask))
        start = rows.stop
        tokens = _guarded(segment, _step, backbone, _slice(taps, rows))
        if tokens is None:
            tokens = torch.full((rows.stop - rows.start,), backbone.config.eos_token_id, device=taps.mask.device)
        parts.append(tokens)
    return torch.cat(parts)


def _step(segment: Segment, backbone: Backbone, taps: Taps) -> Tensor:
    state = segment.side.decode(taps, segment.memory, segment.taps.mask, segment.cache)
    logits = backbone.logits(state[:, -1])
    segment.broken |= ~torch.isfinite(logits).all(-1)
    return logits.argmax(-1)


def _slice(taps: Taps, rows: slice) -> Taps:
    return Taps(
        embeddings=taps.embeddings[rows],
        blocks=tuple(block[rows] for block in taps.blocks),
        mask=taps.mask[rows],
        final=None if taps.final is None else taps.final[rows],
    )


def _failed_rows(segments: list[Segment]) -> Tensor:
    return torch.cat([segment.broken | (segment.failure is not None) for segment in segments])


def _collect(segments: list[Segment], steps: list[list[int]], eos: int) -> list[list[Tokens | Exception]]:
    results: list[list[Tokens | Exception]] = []
    start = 0
    for segment in segments:
        rows = steps[start : start + len(segment.taps.mask)]
        start += len(rows)
        results.append([_row(segment, place, row, eos) for place, row in enumerate(rows)])
    return results


def _row(segment: Segment, place: int, tokens: list[int], eos: int) -> Tokens | Exception:
    if segment.failure is not None:
        return segment.failure
    if bool(segment.broken[place]):
        return NotFiniteError("the side network's logits are not finite numbers")
    return tuple(tokens[: min(tokens.index(eos) if eos in tokens else segment.limit, segment.limit)])
