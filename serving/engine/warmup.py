"""Warm-up: torch and the device do their first-use work before the server is ready.

It answers batches of made-up tokens for a resident of each kind, with one decoder step of their texts: one row and a
few rows; on a GPU several lengths too, up to a full batch. They run in a separate engine, so neither metrics nor the
activation cache see them. Runs on the device thread. Golden examples warm the versions that are loaded later.
"""

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from math import isqrt

import torch

from ladder.backbone import Backbone
from serving.config import BatchConfig, EngineConfig
from serving.engine.activation_cache import ActivationCache
from serving.engine.cached_backbone import CachedBackbone, Encode
from serving.engine.engine import Engine
from serving.engine.rows import EncodedImage, EngineRow, Key, Resident
from serving.metrics import Metrics

log = logging.getLogger(__name__)

TOKENS = (8, 32, 128)
"""Lengths of the inputs."""
PAIR = ((0, 4), (4, 8))
"""Where two texts lie in an input, for side networks that read them apart."""
FEW = 8
"""Rows of a small batch."""


def warm_up(
    backbone: Backbone,
    residents: Iterable[Resident],
    batch: BatchConfig,
    config: EngineConfig,
    encode: Encode | None = None,
) -> int:
    """Answer larger and larger batches; returns how many.

    Ends after `warmup_s`, or before a batch that would take longer than what is left, judged by the one before. Never
    raises: it logs the error, and the first requests will show it.
    """
    began = time.monotonic()
    pace = 0.0
    done = 0
    kinds = one_of_each(residents)
    shapes = shapes_of(batch, backbone)
    for rows, tokens in (shapes[0], *shapes):  # the first shape twice: its first time says nothing about the next
        started = time.monotonic()
        if began + config.warmup_s <= started + pace * rows * tokens:
            break
        try:
            _run(backbone, kinds, list(_inputs(rows, tokens, backbone.config.vocab_size)), config, encode)
        except Exception:
            log.exception("warming up with %d rows of %d tokens failed; serving all the same", rows, tokens)
            break
        pace = (time.monotonic() - started) / (rows * tokens) if done else 0.0
        done += 1
    if done:
        log.info("warmed up with %d batches in %.1f s", done, time.monotonic() - began)
    return done


def one_of_each(residents: Iterable[Resident]) -> list[Resident]:
    """Choose one resident of each kind of answer, head, width and use of images."""
    chosen: dict[object, Resident] = {}
    for resident in residents:
        config = resident.side.config
        chosen.setdefault((type(resident.answerer), config.head, config.reduction, config.visual), resident)
    return list(chosen.values())


def shapes_of(batch: BatchConfig, backbone: Backbone, *, full: bool | None = None) -> list[tuple[int, int]]:
    """List (rows, tokens) of the batches, smallest first: one row and a few.

    Args:
        full: longer inputs and full batches too. None: on a GPU, whose allocator has then seen the largest batch. On a
            CPU only the very first pass takes longer than the next one, whatever their shapes.
    """
    full = backbone.device.type == "cuda" if full is None else full
    lengths = TOKENS if full else TOKENS[:1]
    shapes = set()
    for tokens in {min(length, backbone.config.max_positions or length) for length in lengths}:
        most = min(batch.max_batch_rows, max(batch.max_batch_tokens // tokens, 1))
        shapes |= {(1, tokens), (min(FEW, most), tokens), *([(most, tokens)] if full else [])}
    return sorted(shapes, key=lambda shape: shape[0] * shape[1])


def _inputs(rows: int, tokens: int, vocabulary: int) -> Iterator[tuple[int, ...]]:
    """Make distinct inputs."""
    for row in range(rows):
        yield tuple((row + 7 * column) % vocabulary for column in range(tokens))


def _run(
    backbone: Backbone,
    kinds: Sequence[Resident],
    inputs: Sequence[tuple[int, ...]],
    config: EngineConfig,
    encode: Encode | None,
) -> None:
    if kinds:
        engine = Engine(backbone, Metrics(), replace(config, cache_bytes=0), encode)
        blank = _blank_images(kinds)
        pairs = [(ids, kinds[index % len(kinds)]) for index, ids in enumerate(inputs)]
        pairs += [(inputs[0], kind) for kind in kinds[len(inputs) :]]
        rows = [EngineRow(ids, kind, images=blank.get(kind.key, ()), pair=PAIR) for ids, kind in pairs]
        engine.step(rows, (), _ignore)
        engine.step((), rows, _ignore)
        return
    with torch.inference_mode():
        first_step = range(len(inputs)) if backbone.has_decoder else ()
        cached_backbone = CachedBackbone(backbone, ActivationCache(0), Metrics(), encode)
        cached_backbone.read([("", ids) for ids in inputs], None, list(first_step))


def _blank_images(kinds: Sequence[Resident]) -> dict[Key, tuple[EncodedImage, ...]]:
    """Images of zeros for those that read images, by version. Their grid is the largest that a side network reads."""
    visuals = [(kind, visual) for kind in kinds if (visual := kind.side.config.visual) is not None]
    if not visuals:
        return {}
    tokens = max(visual.tokens or isqrt(visual.positions) ** 2 for _, visual in visuals)
    blank = EncodedImage("blank", torch.zeros(tokens, visuals[0][1].features))
    return {kind.key: (blank,) * len(kind.spec.images) for kind, _ in visuals}


def _ignore(events: Collection[object]) -> None:
    pass
