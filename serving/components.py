"""The composition root: puts the components of a serving process together. Blocks for seconds."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from google.protobuf.descriptor import ServiceDescriptor

from ladder import Backbone, load_backbone, load_tokenizer
from ladder.backbone import CompiledEncoder, Limits, pack_backbone
from serving.access import TrustPolicy
from serving.api import Drain
from serving.api.servicers import make_servicers
from serving.config import ServeConfig, ShadowConfig
from serving.cores import most_threads
from serving.engine import (
    Engine,
    SpareCores,
    YieldingSteps,
    check_fits,
    free_bytes,
    pick_device,
    pick_precision,
    run_apart,
    run_aside,
    run_steps_aside,
    running_aside,
    warm_up,
)
from serving.images import ImagePool
from serving.metrics import Metrics
from serving.pipeline import PredictService
from serving.rollout import AutoRollback, Comparisons, ShadowRunner, routed_of
from serving.scheduler import Batcher
from serving.versions import Arrivals, Loader, Presence, Progress, RecentUse, Reconciler, SidePool, address_of
from side_registry import Registry
from side_registry.errors import RegistryError
from vision import load_encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """What the gRPC services need, and what has to be stopped at the end."""

    service: PredictService
    pool: SidePool
    registry: Registry
    wake: Callable[[], None]
    """Makes the reconciler look at the registry now."""
    stop: Callable[[], None]
    """Ends the threads that follow the registry. Blocks until a load in progress ends."""
    comparisons: Comparisons = field(default_factory=Comparisons)
    """The comparisons of the routes' versions."""
    batcher: Batcher | None = None
    """The batcher of the service; None where the service has none."""
    fault: Callable[[], str] = lambda: ""
    """Why this process should be replaced by another; empty where it should not."""
    device: str = "cpu"

    def servicers(
        self, config: ServeConfig, metrics: Metrics, drain: Drain, presence: Presence
    ) -> Mapping[ServiceDescriptor, Any]:
        """The servicer of each gRPC service, with these components behind it."""
        return make_servicers(
            service=self.service,
            pool=self.pool,
            registry=self.registry,
            comparisons=self.comparisons,
            presence=presence,
            wake=self.wake,
            drain=drain,
            metrics=metrics,
            config=config,
            device=self.device,
        )


def assemble(config: ServeConfig, metrics: Metrics, progress: Progress | None = None) -> Components:
    """Open the registry, or make one where there is none; load the backbone, the encoder and what is published.

    Versions that are not loaded after `first_loads_s` are loaded on a thread.

    Args:
        config: its port is the port that was taken.

    Raises:
        RegistryError, BackboneError, EncoderError, StartError.
    """
    trust = TrustPolicy(Path(config.access.trust).expanduser()) if config.access.trust else None
    registry = Registry.open(config.registry, create=True)
    backbone = run_apart(_load_backbone, config)
    tokenizer = load_tokenizer(config.backbone)
    images = run_apart(_load_images, backbone, config, metrics)
    pool = SidePool()
    recent = RecentUse(registry)
    encoder = _compiled(backbone, config)
    pass_limit = config.engine.max_pass_bytes or free_bytes(str(backbone.device)) // 2
    engine = Engine(backbone, metrics, replace(config.engine, max_pass_bytes=max(pass_limit, 1)), encoder)
    loader = Loader(registry, backbone, tokenizer, config.load, batch=config.batch, images=images, trust=trust)
    reconciler = Reconciler(
        registry,
        pool,
        partial(run_aside, loader.fetch),
        config.load,
        metrics,
        tidy=loader.tidy,
        on_change=lambda before, after: arrivals.notify(before, after),
        replay=lambda resident: run_steps_aside(loader.replay(resident)),
        recent=recent.earlier,
    )
    arrivals = Arrivals(pool, reconciler.ask)
    reconciler.begin(progress, config.load.first_loads_s)
    device = ThreadPoolExecutor(1, thread_name_prefix="device")
    device.submit(_warm_up, backbone, pool, encoder, config).result()
    reconciler.start()  # after the device thread's first use of torch, which sets its number of threads
    batch = replace(config.batch, padding_cost=min(config.batch.padding_cost, engine.padding_cost))
    cores = device.submit(torch.get_num_threads).result()
    batcher = Batcher(_yielding(engine, cores, config), batch, metrics, config.limits, device, config.shadow)
    comparisons = _comparisons(pool, config.shadow)
    shadows = ShadowRunner(batcher, comparisons, tokenizer, config.shadow, metrics, pool.holds)
    service = PredictService(
        pool, batcher, tokenizer, config.request, metrics, shadows, images, arrivals=arrivals, used=recent.note
    )
    rollback = _auto_rollback(registry, comparisons, pool, config, reconciler.wake, metrics)
    rollback.start()
    recent.start()

    def stop() -> None:
        recent.stop()
        shadows.close()
        rollback.stop()
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


def _auto_rollback(
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
    threads = config.threads or min(torch.get_num_threads(), most_threads() or torch.get_num_threads())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    device = pick_device(config.device)
    check_fits(config, device)
    dtype = pick_precision(config.dtype, device, config.quantize)
    backbone = load_backbone(config.backbone, device=device, dtype=dtype, quantize=config.quantize)
    if not config.engine.compile:  # compiled code has a layout of its own
        pack_backbone(backbone)
    log.info("backbone %s on %s in %s, %s", backbone.name, device, backbone.dtype, backbone.fingerprint)
    return backbone


def _yielding(engine: Engine, cores: int, config: ServeConfig) -> Engine | YieldingSteps:
    """The engine; where its number of threads is free to choose, it leaves cores to busy neighbours."""
    is_fixed = config.threads or config.engine.compile  # compiled code is made for one number of threads
    return engine if is_fixed or cores == 1 else YieldingSteps(engine, SpareCores(cores), running_aside)


def _load_images(backbone: Backbone, config: ServeConfig, metrics: Metrics) -> ImagePool | None:
    """The vision encoder on the backbone's device, in its dtype, warm; None where the configuration names none."""
    images = config.images
    if not images.vision:
        return None
    encoder = load_encoder(
        images.vision,
        layer=images.vision_layer,
        size=images.vision_size or None,
        device=backbone.device,
        dtype=str(backbone.dtype).removeprefix("torch."),
    )
    log.info(
        "vision encoder %s, %d x %d tokens of %d features, %s",
        encoder.name,
        *encoder.grid,
        encoder.width,
        encoder.fingerprint,
    )
    pool = ImagePool(encoder, images, metrics)
    if config.engine.warmup_s:
        pool.warm_up()
    return pool


def _compiled(backbone: Backbone, config: ServeConfig) -> CompiledEncoder | None:
    """Where the configuration asks for it; it compiles when it warms up."""
    limits = Limits(rows=config.batch.max_batch_rows, tokens=config.batch.max_batch_tokens)
    return CompiledEncoder(backbone, limits) if config.engine.compile else None


def _warm_up(backbone: Backbone, pool: SidePool, encoder: CompiledEncoder | None, config: ServeConfig) -> None:
    """Run on the device thread: torch keeps some of its state by thread, such as its number of threads."""
    torch.get_num_threads()  # its first use: from now on, loads on other threads do not change the number of this one
    if encoder:
        with torch.inference_mode():
            encoder.warm_up()
    if config.engine.warmup_s:
        warm_up(backbone, pool.snapshot().residents.values(), config.batch, config.engine, encoder)


CATCH_UP_S = 10.0
"""Longest that a new server waits until it serves what was committed while it loaded."""
CATCH_UP_POLL_S = 0.02


async def join(components: Components, presence: Presence, drain: Drain) -> None:
    """Announce this server, so that writers wait for it; then wait until it serves what was committed before.

    Raises:
        Draining: the server was told to stop meanwhile.
    """
    await asyncio.to_thread(presence.start)
    with contextlib.suppress(RegistryError):  # out of reach; what was loaded is served
        newest = (await asyncio.to_thread(components.registry.state)).generation
        deadline = time.monotonic() + CATCH_UP_S
        components.wake()
        while components.pool.snapshot().generation < newest and time.monotonic() < deadline:
            await drain.pause(CATCH_UP_POLL_S)
