"""Puts the parts of a serving process together, from its configuration: everything but gRPC. Blocks for seconds."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from ladder import Backbone, load_backbone, load_tokenizer
from ladder.compiled import CompiledEncoder, Limits
from serving.batching import Batcher
from serving.config import ServeConfig
from serving.doors import Service
from serving.engine import Engine
from serving.loader import Loader
from serving.metrics import Metrics
from serving.pool import SidePool
from serving.reconciler import Progress, Reconciler
from serving.service import PredictService
from serving.threads import run_apart
from serving.warmup import warm_up
from side_registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the doors need, and what has to be stopped at the end."""

    service: Service
    pool: SidePool
    registry: Registry
    wake: Callable[[], None]
    """Have the registry looked at now."""
    stop: Callable[[], None]
    """End the threads that follow the registry. Blocks until a load in progress ends."""


def assemble(config: ServeConfig, metrics: Metrics, progress: Progress | None = None) -> Parts:
    """Open the registry, or make one where nothing is; load the backbone and all that is published.

    Raises:
        RegistryError, BackboneError, StartError.
    """
    registry = Registry.open(config.registry, create=True)
    backbone = run_apart(_load_backbone, config)
    tokenizer = load_tokenizer(config.backbone)
    pool, encoder = SidePool(), _compiled(backbone, config)
    engine = Engine(backbone, metrics, config.engine, encoder)
    loader = Loader(registry, backbone, tokenizer, config.load)
    reconciler = Reconciler(registry, pool, partial(run_apart, loader.load), config.load, metrics)
    reconciler.start(progress)
    device = ThreadPoolExecutor(1, thread_name_prefix="device")
    device.submit(_warm_up, backbone, pool, encoder, config).result()
    batcher = Batcher(engine, config.batch, metrics, config.limits, device)
    service = PredictService(pool, batcher, tokenizer, config.request, metrics)
    return Parts(service=service, pool=pool, registry=registry, wake=reconciler.wake, stop=reconciler.stop)


def _load_backbone(config: ServeConfig) -> Backbone:
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    backbone = load_backbone(config.backbone, device=device, dtype=config.dtype, quantize=config.quantize)
    log.info("backbone %s on %s, %s", backbone.name, device, backbone.fingerprint)
    return backbone


def _compiled(backbone: Backbone, config: ServeConfig) -> CompiledEncoder | None:
    """Not compiled yet."""
    limits = Limits(rows=config.batch.max_batch_rows, tokens=config.batch.max_batch_tokens)
    return CompiledEncoder(backbone, limits) if config.engine.compile else None


def _warm_up(backbone: Backbone, pool: SidePool, encoder: CompiledEncoder | None, config: ServeConfig) -> None:
    """On the device thread, some of what torch sets up is a thread's own."""
    if encoder:
        with torch.inference_mode():
            encoder.warm_up()
    if config.engine.warmup_s:
        warm_up(backbone, pool.snapshot().residents.values(), config.batch, config.engine, encoder)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
