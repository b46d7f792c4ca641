"""A serving process from its first port to its last answer.

Takes the ports, then loads, then answers. Told to stop, it answers what it has begun, refuses what is new, and ends.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from serving.api import ADMIN, HEALTH, NATIVE, OPEN_INFERENCE, OURS, Drain, Interceptor
from serving.components import Components, assemble, join, make_servicers
from serving.config import ServeConfig
from serving.engine import share_heaps
from serving.errors import Draining
from serving.metrics import Metrics
from serving.ports import MetricsServer, grpc_options, take_port
from serving.versions import Presence, Progress, address_of

log = logging.getLogger(__name__)

ADD: Mapping[ServiceDescriptor, Callable[[Any, grpc.aio.Server], None]] = {
    OPEN_INFERENCE: open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
    NATIVE: sidecast_pb2_grpc.add_SidecastServicer_to_server,
    ADMIN: sidecast_pb2_grpc.add_AdminServicer_to_server,
    HEALTH: health_pb2_grpc.add_HealthServicer_to_server,
}

CLOSING_S = 0.5
"""What health watchers have to read the last word."""

Assemble = Callable[[ServeConfig, Metrics, Progress | None], Components]


class Server:
    """One server on the running event loop.

    Args:
        assemble: makes the parts behind the doors; called on a thread.
    """

    def __init__(self, config: ServeConfig, assemble: Assemble = assemble, progress: Progress | None = None) -> None:
        self.config, self.metrics, self.drain = config, Metrics(), Drain()
        self.port = self.metrics_port = 0
        self._assemble, self._progress = assemble, progress
        self._parts: Components | None = None
        self._presence: Presence | None = None
        self._grpc: grpc.aio.Server | None = None
        self._answering = False
        self._http: MetricsServer | None = None

    @property
    def task_count(self) -> int:
        """Tasks that can be called now."""
        return len({task for task, _ in self._parts.pool.snapshot().residents}) if self._parts else 0

    @property
    def address(self) -> str:
        """Where others may find its doors."""
        return address_of(self.config.host, self.port)

    @property
    def generation(self) -> int:
        """The registry's generation that is served; -1 before there is one."""
        return self._parts.pool.snapshot().generation if self._parts else -1

    async def start(self) -> None:
        """Take the ports, load, answer. Ports that were taken are given back when it fails.

        Raises:
            PortInUse, CannotListen: before anything is loaded.
            RegistryError, BackboneError.
            Draining: told to stop while it loads.
        """
        try:
            self._take_ports()
            config = replace(self.config, port=self.port)
            self._parts = await asyncio.to_thread(self._assemble, config, self.metrics, self._on_progress)
            self._presence = Presence(self._parts.registry, self.address, lambda: self.generation)
            await join(self._parts, self._presence, self.drain)
            self._add_servicers(self._parts, self._presence)
            await self._require_grpc().start()
            self._answering = True
        except BaseException:
            await self._close(0)
            raise

    async def stop(self, grace_s: float | None = None) -> bool:
        """Refuse new calls, let those in flight finish, end. False when some had to be cut off after `grace_s`."""
        grace_s = self.config.grace_s if grace_s is None else grace_s
        log.info("draining: %d calls in flight, %.1f s for them", self.drain.in_flight, grace_s)
        self.drain.begin()
        finished, _ = await asyncio.gather(self.drain.idle(grace_s), self._leave())
        if not finished:
            log.warning("%d calls are cut off after %.1f s", self.drain.in_flight, grace_s)
        await self._close(CLOSING_S)
        return finished

    async def _leave(self) -> None:
        """Have no writer wait for this server any more."""
        if self._presence:
            await asyncio.to_thread(self._presence.stop)
            self._presence = None

    def _on_progress(self, done: int, total: int, what: str) -> None:
        """On the loading thread, between two loads."""
        if self.drain.draining:
            raise Draining()
        if self._progress:
            self._progress(done, total, what)

    def _take_ports(self) -> None:
        config = self.config
        options = grpc_options(config.max_message_bytes)
        self._grpc = grpc.aio.server(interceptors=[Interceptor(self.drain)], options=options)
        self.port = take_port(self._grpc, config.host, config.port)
        self._http = MetricsServer(config.host, config.metrics_port, self.metrics.registry)
        self.metrics_port = self._http.port

    def _add_servicers(self, parts: Components, presence: Presence) -> None:
        server = self._require_grpc()
        for service, servicer in make_servicers(parts, self.config, self.metrics, self.drain, presence).items():
            ADD[service](servicer, server)
        reflection.enable_server_reflection((*OURS, HEALTH.full_name, reflection.SERVICE_NAME), server)

    async def _close(self, grace_s: float) -> None:
        await self._leave()
        if self._grpc:
            if not self._answering:
                await self._grpc.start()  # one that never started does not give its port back
            await self._grpc.stop(grace_s)
        if self._parts:
            await self._parts.service.close()
            await asyncio.to_thread(self._parts.stop)
        if self._http:
            await asyncio.to_thread(self._http.close)
        self._grpc, self._parts, self._http = None, None, None

    def _require_grpc(self) -> grpc.aio.Server:
        if self._grpc is None:
            raise RuntimeError("the server has no ports; it was stopped")
        return self._grpc


def run_server(
    config: ServeConfig,
    on_ready: Callable[[Server], None] | None = None,
    *,
    assemble: Assemble = assemble,
    progress: Progress | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once. Returns the exit code.

    Args:
        on_ready: called once the server answers.

    Raises:
        what `Server.start` raises.
    """
    share_heaps()
    return asyncio.run(_run(Server(config, assemble, progress), on_ready))


async def _run(server: Server, on_ready: Callable[[Server], None] | None) -> int:
    _drain_on_signals(server.drain)
    started = time.monotonic()
    try:
        await server.start()
    except Draining:
        return 0
    log.info("ready after %.1f s on port %d", time.monotonic() - started, server.port)
    if on_ready:
        on_ready(server)
    await server.drain.begun()
    return 0 if await server.stop() else 1


def _drain_on_signals(drain: Drain) -> None:
    """The first SIGTERM or SIGINT begins the drain; the next one ends the process."""

    def stop(number: int) -> None:
        if drain.draining:
            os._exit(128 + number)
        drain.begin()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
