"""One replica of the Ray Serve application: the parts and the doors of a single process, called by Ray.

It imports torch only when it starts: Ray reads this module where no model is, too.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from google.protobuf.message import Message
from ray import serve
from ray.util import get_node_ip_address

from serving.api import Drain, end_tasks
from serving.cluster.grpc_bridge import OFFERED, Calls, RayContext
from serving.config import ServeConfig
from serving.errors import PortInUse
from serving.metrics import Metrics
from serving.ports import MetricsServer
from serving.scheduler import Utilization

if TYPE_CHECKING:
    from serving.components import Components
    from serving.scheduler import Batcher


log = logging.getLogger(__name__)

HEALTH_EVERY_S = 5.0
FORGOTTEN_S = 3 * HEALTH_EVERY_S
"""Ray no longer asks for the health of a replica that it stops, and says nothing else: where no check came for so long,
streams that last end, to be opened again at another replica. They end once in that time where only Ray's controller is
away, and are opened again here."""
METRICS_PORTS = 64
"""Replicas of one node take the first free port of so many, from `metrics_port` on."""


class Server:
    """What Ray calls: every method of our doors by its bare name, and those below.

    Args:
        settings: as of `ServeConfig.from_values`. A replica is behind Ray's port: its own is of no use.

    Raises:
        what `serving.components.assemble` raises. Ray shows it as the deployment's message.
    """

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]  # as Ray allows
        self.metrics, self.drain, self._open = Metrics(), Drain(), AsyncExitStack()
        try:
            await self._start(ServeConfig.from_values(settings))
        except BaseException:
            await self._open.aclose()
            raise

    async def _start(self, config: ServeConfig) -> None:
        from serving.components import assemble, join
        from serving.engine import share_heaps
        from serving.versions import Presence

        share_heaps()
        started = time.monotonic()
        self.id, self.node = serve.get_replica_context().replica_tag, get_node_ip_address()
        config = _of_replica(config, self.node)
        logging.getLogger("serving").setLevel(config.log_level)
        self._http = _metrics_server(config, self.metrics)
        self._open.push_async_callback(asyncio.to_thread, self._http.close)
        parts = self._parts = await asyncio.to_thread(assemble, config, self.metrics)
        self._open.push_async_callback(asyncio.to_thread, parts.stop)
        self._open.push_async_callback(parts.service.close)
        self._busy, self._load = (
            Utilization(lambda: self.metrics.computed_s),
            Utilization(lambda: _batcher(parts).work.seconds),
        )
        presence = Presence(parts.registry, f"{self.node}/{self.id}", lambda: self.generation)
        self._open.push_async_callback(asyncio.to_thread, presence.stop)
        await join(parts, presence, self.drain)
        self._calls = Calls(parts.servicers(config, self.metrics, self.drain, presence), self.drain)
        self._asked_at = time.monotonic()
        leaving = asyncio.create_task(self._leave_when_forgotten())
        self._open.push_async_callback(end_tasks, {leaving})
        self._start_s = time.monotonic() - started
        log.info("replica %s is ready after %.1f s at generation %d", self.id, self._start_s, self.generation)

    async def __del__(self) -> None:
        """By Ray, once the calls in flight are answered or out of time; while it still starts, that ends at once."""
        self.drain.begin()
        await self._open.aclose()

    async def _leave_when_forgotten(self) -> None:
        left_at = self._asked_at
        while True:
            since = max(self._asked_at, left_at)
            await asyncio.sleep(since + FORGOTTEN_S - time.monotonic())
            if max(self._asked_at, left_at) == since:
                self.drain.leave()
                left_at = time.monotonic()

    @property
    def generation(self) -> int:
        """The registry's generation that is served."""
        return self._parts.pool.snapshot().generation

    async def check_health(self) -> None:
        """Raises RuntimeError: nothing comes off the device any more, or nobody follows the registry."""
        self._asked_at = time.monotonic()
        if fault := self._parts.fault():
            raise RuntimeError(fault)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `serving.cluster.autoscaling` decides by."""
        queued, busy, load = _batcher(self._parts).queued_tokens, self._busy.now, self._load.now
        return {"busy": busy, "load": load, "queued_tokens": queued, "in_flight": self.drain.in_flight}

    async def status(self) -> dict[str, Any]:
        """For `sidecast status`."""
        state = self._parts.pool.snapshot()
        return {
            "id": self.id,
            "node": self.node,
            "pid": os.getpid(),
            "device": self._parts.device,
            "generation": state.generation,
            "wanted": state.wanted,
            "ready": self._parts.service.ready,
            "in_flight": self.drain.in_flight,
            "queued_rows": _batcher(self._parts).queued_rows,
            "busy": self._busy.now,
            "load": self._load.now,
            "residents": len(state.residents),
            "failed": len(state.failed),
            "metrics": f"{self.node}:{self._http.port}",
            "start_s": self._start_s,
        }


def _answering(name: str) -> Callable[..., Any]:
    async def method(self: Server, request: Any, grpc_context: RayContext) -> Message:
        return await self._calls.answer(name, request, grpc_context)

    return method


def _streaming(name: str) -> Callable[..., Any]:
    async def method(self: Server, request: Any, grpc_context: RayContext) -> AsyncGenerator[Message, None]:
        async for response in self._calls.stream(name, request, grpc_context):
            yield response

    return method


for _method in (each for service in OFFERED for each in service.methods):
    setattr(Server, _method.name, (_streaming if _method.server_streaming else _answering)(_method.name))


def _of_replica(config: ServeConfig, node: str) -> ServeConfig:
    """With as many of torch's threads as Ray gives the replica cores, and on the GPU that Ray gives it, if any."""
    given = ray.get_runtime_context().get_assigned_resources()
    device = config.device
    if device == "auto":  # Ray hides no GPU from whom it gives none
        device = "cuda" if given.get("GPU") else "cpu"
    return replace(config, host=node, device=device, threads=config.threads or max(1, int(given.get("CPU", 0))))


def _batcher(parts: "Components") -> "Batcher":
    assert parts.batcher is not None, "assembled parts have one"
    return parts.batcher


def _metrics_server(config: ServeConfig, metrics: Metrics) -> MetricsServer:
    """Raises PortInUse, CannotListen."""
    first = config.metrics_port
    for port in range(first, first + METRICS_PORTS) if first else ():
        try:
            return MetricsServer("0.0.0.0", port, metrics.registry)
        except PortInUse:
            continue
    return MetricsServer("0.0.0.0", 0, metrics.registry)
