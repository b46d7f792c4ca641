"""One replica of the Ray Serve application: the parts and the doors of a single process, called by Ray.

It imports torch only when it starts: Ray reads this module where no model is, too.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from typing import Any

import ray
from google.protobuf.message import Message
from ray import serve
from ray.util import get_node_ip_address

from serving.busy import Share
from serving.config import ServeConfig
from serving.gate import Drain
from serving.ingress import OFFERED, Calls, RayContext
from serving.listening import MetricsServer, PortInUse
from serving.metrics import Metrics

log = logging.getLogger(__name__)

METRICS_PORTS = 64
"""Replicas of one node take the first free port of so many, from `metrics_port` on."""


class Server:
    """What Ray calls: every method of our doors by its bare name, and those below.

    Args:
        settings: as of `ServeConfig.from_values`. A replica is behind Ray's port: its own is of no use.

    Raises:
        what `serving.assembly.assemble` raises. Ray shows it as the deployment's message.
    """

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]  # as Ray allows
        from serving.assembly import assemble
        from serving.opening import join, open_doors
        from serving.presence import Presence
        from serving.threads import share_heaps

        share_heaps()
        started = time.monotonic()
        context = serve.get_replica_context()
        self.id, self.node = context.replica_tag, get_node_ip_address()
        self.metrics, self.drain = Metrics(), Drain()
        config = _of_replica(ServeConfig.from_values(settings), self.node)
        logging.getLogger("serving").setLevel(config.log_level)
        self._http = _metrics_server(config, self.metrics)
        self._parts = await asyncio.to_thread(assemble, config, self.metrics)
        self._busy, self._load = Share(lambda: self.metrics.computed_s), Share(self._parts.worked_s)
        presence = self._presence = Presence(self._parts.registry, f"{self.node}/{self.id}", lambda: self.generation)
        await join(self._parts, presence, self.drain)
        self._calls = Calls(open_doors(self._parts, config, self.metrics, self.drain, presence), self.drain)
        self._start_s = time.monotonic() - started
        log.info("replica %s is ready after %.1f s at generation %d", self.id, self._start_s, self.generation)

    async def __del__(self) -> None:
        """By Ray, once the calls in flight are answered or out of time."""
        self.drain.begin()
        await asyncio.to_thread(self._presence.stop)
        await self._parts.service.close()
        await asyncio.to_thread(self._parts.stop)
        await asyncio.to_thread(self._http.close)

    @property
    def generation(self) -> int:
        """The registry's generation that is served."""
        return self._parts.pool.snapshot().generation

    async def check_health(self) -> None:
        """Raises RuntimeError: the thread that owns the device, or the one that follows the registry, has ended."""
        if fault := self._parts.fault():
            raise RuntimeError(fault)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `serving.scaling` decides by."""
        return {"busy": self._busy.now, "load": self._load.now, "queued_tokens": self.metrics.queued_tokens}

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
            "queued_rows": self.metrics.queued_rows,
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
    """With as many of torch's threads as Ray gives the replica cores, where the settings leave the choice."""
    cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return replace(config, host=node, threads=config.threads or max(1, int(cores)))


def _metrics_server(config: ServeConfig, metrics: Metrics) -> MetricsServer:
    """Raises PortInUse, CannotListen."""
    first = config.metrics_port
    for port in range(first, first + METRICS_PORTS) if first else ():
        try:
            return MetricsServer("0.0.0.0", port, metrics.registry)
        except PortInUse:
            continue
    return MetricsServer("0.0.0.0", 0, metrics.registry)
