"""Puts the parts of a serving process together, from its configuration: everything but gRPC. Blocks for seconds."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ladder import Backbone, load_backbone, load_tokenizer
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
    pool, engine = SidePool(), Engine(backbone, metrics)
    loader = Loader(registry, backbone, tokenizer, config.load)
    reconciler = Reconciler(registry, pool, partial(run_apart, loader.load), config.load, metrics)
    reconciler.start(progress)
    service = PredictService(pool, Batcher(engine.predict, config.batch, metrics), tokenizer, config.request, metrics)
    return Parts(service=service, pool=pool, registry=registry, wake=reconciler.wake, stop=reconciler.stop)


def _load_backbone(config: ServeConfig) -> Backbone:
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    backbone = load_backbone(config.backbone, device=device, dtype=config.dtype, quantize=config.quantize)
    log.info("backbone %s on %s, %s", backbone.name, device, backbone.fingerprint)
    return backbone


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
