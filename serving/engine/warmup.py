"""Warm-up: what torch and the device set up at first use is set up before the server is ready.

Batches of made-up tokens, a row and a few or, on a GPU, of several lengths and up to a full batch, for a resident of
every kind, and one decoder step of their texts. They go through an engine of their own: they are no traffic, so neither
metrics nor the activation cache know of them. Runs on the device thread. Versions that come later are warm by their
golden examples.
"""

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from ladder.backbone import Backbone
from serving.config import BatchConfig, EngineConfig
from serving.engine.activation_cache import ActivationCache
from serving.engine.cached_backbone import CachedBackbone, Encode
from serving.engine.engine import Engine
from serving.engine.rows import EngineRow, Resident
from serving.metrics import Metrics

log = logging.getLogger(__name__)

TOKENS = (8, 32, 128)
"""Lengths of the inputs."""
FEW = 8
"""Rows of a batch that is neither one nor full."""


def warm_up(
    backbone: Backbone,
    residents: Iterable[Resident],
    batch: BatchConfig,
    config: EngineConfig,
    encode: Encode | None = None,
) -> int:
    """Answer ever larger batches; returns how many.

    It ends after `warmup_s`, and before a batch that would take longer than what is left of it, by the pace so far.
    Never raises: a server that fails here may fail its first requests, and is to say why there.
    """
    began, pace, done = time.monotonic(), 0.0, 0
    kinds, shapes = one_of_each(residents), shapes_of(batch, backbone)
    for rows, tokens in (shapes[0], *shapes):  # the first one twice: its first time tells no pace
        started = time.monotonic()
        if began + config.warmup_s <= started + pace * rows * tokens:
            break
        try:
            _run(backbone, kinds, list(_inputs(rows, tokens, backbone.config.vocab_size)), config, encode)
        except Exception:
            log.exception("warming up with %d rows of %d tokens failed; serving all the same", rows, tokens)
            break
        pace, done = (time.monotonic() - started) / (rows * tokens) if done else 0.0, done + 1
    if done:
        log.info("warmed up with %d batches in %.1f s", done, time.monotonic() - began)
    return done


def one_of_each(residents: Iterable[Resident]) -> list[Resident]:
    """A resident of every kind of answer, head and width."""
    found: dict[object, Resident] = {}
    for resident in residents:
        config = resident.side.config
        found.setdefault((type(resident.answerer), config.head, config.reduction), resident)
    return list(found.values())


def shapes_of(batch: BatchConfig, backbone: Backbone, *, full: bool | None = None) -> list[tuple[int, int]]:
    """(rows, tokens) each, smallest first: a row and a few; with `full` longer ones too, and as many as may be.

    Args:
        full: None: on a GPU, whose allocator then has seen the most. A CPU gains nothing by it: there only the very
            first pass takes longer than the next one, whatever their shapes.
    """
    full = backbone.device.type == "cuda" if full is None else full
    shapes, lengths = set(), TOKENS if full else TOKENS[:1]
    for tokens in {min(length, backbone.config.max_positions or length) for length in lengths}:
        most = min(batch.max_batch_rows, max(batch.max_batch_tokens // tokens, 1))
        shapes |= {(1, tokens), (min(FEW, most), tokens), *([(most, tokens)] if full else [])}
    return sorted(shapes, key=lambda shape: shape[0] * shape[1])


def _inputs(rows: int, tokens: int, vocabulary: int) -> Iterator[tuple[int, ...]]:
    """Distinct ones."""
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
        rows = [EngineRow(ids, kinds[place % len(kinds)]) for place, ids in enumerate(inputs)]
        rows += [EngineRow(inputs[0], kind) for kind in kinds[len(inputs) :]]
        engine.turn(rows, (), _ignore)
        engine.turn((), rows, _ignore)
        return
    with torch.inference_mode():
        first_step = range(len(inputs)) if backbone.has_decoder else ()
        cached_backbone = CachedBackbone(backbone, ActivationCache(0), Metrics(), encode)
        cached_backbone.read([("", ids) for ids in inputs], None, list(first_step))


def _ignore(events: Collection[object]) -> None:
    pass
