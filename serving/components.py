"""The composition root: puts the components of a serving process together. Blocks for seconds."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from google.protobuf.descriptor import ServiceDescriptor

from ladder import Backbone, load_backbone, load_tokenizer
from ladder.backbone import CompiledEncoder, Limits
from serving.api import (
    ADMIN,
    HEALTH,
    NATIVE,
    OPEN_INFERENCE,
    OURS,
    AdminServicer,
    Drain,
    HealthServicer,
    NativeServicer,
    OpenInferenceServicer,
    Service,
    Tenants,
)
from serving.config import ServeConfig, ShadowConfig
from serving.engine import Engine, check_fits, pick_device, run_apart, run_aside, warm_up
from serving.metrics import Metrics
from serving.pipeline import PredictService
from serving.rollout import AutoRollback, Comparisons, ShadowRunner, routed_of
from serving.scheduler import Batcher
from serving.versions import Loader, Presence, Progress, Reconciler, SidePool, address_of
from side_registry import Registry
from side_registry.errors import RegistryError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """What the doors need, and what has to be stopped at the end."""

    service: Service
    pool: SidePool
    registry: Registry
    wake: Callable[[], None]
    """Have the registry looked at now."""
    stop: Callable[[], None]
    """End the threads that follow the registry. Blocks until a load in progress ends."""
    comparisons: Comparisons = field(default_factory=Comparisons)
    """How the versions of routes compare."""
    batcher: Batcher | None = None
    """Behind the service; None where that is a stand-in."""
    fault: Callable[[], str] = lambda: ""
    """Why this process should be replaced by another; empty where it should not."""
    device: str = "cpu"


def assemble(config: ServeConfig, metrics: Metrics, progress: Progress | None = None) -> Components:
    """Open the registry, or make one where nothing is; load the backbone and all that is published.

    Args:
        config: its port is the one that was taken.

    Raises:
        RegistryError, BackboneError, StartError.
    """
    registry = Registry.open(config.registry, create=True)
    backbone = run_apart(_load_backbone, config)
    tokenizer = load_tokenizer(config.backbone)
    pool, encoder = SidePool(), _compiled(backbone, config)
    engine = Engine(backbone, metrics, config.engine, encoder)
    loader = Loader(registry, backbone, tokenizer, config.load)
    reconciler = Reconciler(registry, pool, partial(run_aside, loader.load), config.load, metrics, tidy=loader.tidy)
    reconciler.start(progress)
    device = ThreadPoolExecutor(1, thread_name_prefix="device")
    device.submit(_warm_up, backbone, pool, encoder, config).result()
    batch = replace(config.batch, padding_cost=min(config.batch.padding_cost, engine.padding_cost))
    batcher = Batcher(engine, batch, metrics, config.limits, device, config.shadow)
    comparisons = _comparisons(pool, config.shadow)
    shadowing = ShadowRunner(batcher, comparisons, tokenizer, config.shadow, metrics, pool.holds)
    service = PredictService(pool, batcher, tokenizer, config.request, metrics, shadowing)
    judging = _judging(registry, comparisons, pool, config, reconciler.wake, metrics)
    judging.start()

    def stop() -> None:
        shadowing.close()
        judging.stop()
        reconciler.stop()

    return Components(
        service=service,
        pool=pool,
        registry=registry,
        wake=reconciler.wake,
        stop=stop,
        comparisons=comparisons,
        batcher=batcher,
        fault=lambda: _fault(batcher, reconciler),
        device=str(backbone.device),
    )


def _fault(batcher: Batcher, reconciler: Reconciler) -> str:
    if batcher.work.fails:
        return "one turn after the other fails on the device; read the log"
    return "" if reconciler.is_alive else "the thread that follows the registry has ended"


def _comparisons(pool: SidePool, config: ShadowConfig) -> Comparisons:
    kept = config.kept_disagreements if config.keep_inputs else 0
    return Comparisons(lambda task, alias: routed_of(pool.snapshot(), task, alias), kept)


def _judging(
    registry: Registry,
    comparisons: Comparisons,
    pool: SidePool,
    config: ServeConfig,
    wake: Callable[[], None],
    metrics: Metrics,
) -> AutoRollback:
    author = f"sidecast serve@{address_of(config.host, config.port)}"
    return AutoRollback(
        registry, comparisons, lambda: pool.snapshot().routes, author, wake, metrics, suspend=pool.suspend
    )


def _load_backbone(config: ServeConfig) -> Backbone:
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    check_fits(config, device)
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


CATCH_UP_S = 10.0
"""Longest that a new server waits until it serves what was committed while it loaded."""
CATCH_UP_POLL_S = 0.02


async def join(parts: Components, presence: Presence, drain: Drain) -> None:
    """Have writers wait for this server from now on, then serve what they wrote before, so that none is missed.

    Raises:
        Draining: told to stop meanwhile.
    """
    await asyncio.to_thread(presence.start)
    with contextlib.suppress(RegistryError):  # it may be away; what was loaded is served
        newest = (await asyncio.to_thread(parts.registry.state)).generation
        deadline = time.monotonic() + CATCH_UP_S
        parts.wake()
        while parts.pool.snapshot().generation < newest and time.monotonic() < deadline:
            await drain.pause(CATCH_UP_POLL_S)


def make_servicers(
    parts: Components, config: ServeConfig, metrics: Metrics, drain: Drain, presence: Presence
) -> Mapping[ServiceDescriptor, Any]:
    """The servicer of each of our services, and of health."""
    service, pool = parts.service, parts.pool
    tenants = Tenants(config.request.tenant_header)
    admin = AdminServicer(
        pool,
        parts.registry,
        drain,
        parts.wake,
        max_upload_bytes=config.load.max_side_bytes,
        comparisons=parts.comparisons,
        presence=presence,
    )
    return {
        OPEN_INFERENCE: OpenInferenceServicer(service, pool, metrics, drain, tenants),
        NATIVE: NativeServicer(service, metrics, tenants),
        ADMIN: admin,
        HEALTH: HealthServicer(service, pool, drain, OURS),
    }
