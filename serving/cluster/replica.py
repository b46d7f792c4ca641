"""One replica of the Ray Serve application: the components, servicers and HTTP API of a single process, called by Ray.

It imports torch only when it starts, because Ray also imports this module in processes without a model.
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

from serving.access import Access, Certificates, open_certificates, scrape_guard
from serving.api import Drain, Inbox, end_tasks
from serving.cluster.grpc_bridge import SERVICES, Calls, RayContext
from serving.cluster.own_machine import own_machine_alone
from serving.cluster.proxy_tls import LOOPBACK, ProxyCertificate, proxy_certificate
from serving.config import AccessConfig, ServeConfig
from serving.cores import set_spins
from serving.errors import PortInUse
from serving.logs import log_packages, write_audit
from serving.metrics import Metrics
from serving.ports import Allow, MetricsServer, State
from serving.tracing import open_tracer

if TYPE_CHECKING:
    from serving.components import Components
    from serving.http.app import App
    from serving.scheduler import Batcher


log = logging.getLogger(__name__)

HEALTH_EVERY_S = 5.0
FORGOTTEN_S = 3 * HEALTH_EVERY_S
"""Ray stops the health checks of a replica before it stops it, and gives no other sign. After so long without a check,
long-lived streams are ended, so that callers open them again at another replica. If only Ray's controller is away, they
are opened again at this one."""
EVERYWHERE = "0.0.0.0"
CERTIFICATE_EVERY_S = 1.0
"""Pause between two looks whether the proxy has the newest certificate."""
METRICS_PORTS = 64
"""Ports that replicas of one node try for their metrics, from `metrics_port` on."""


class Server:
    """The class that Ray calls: every method of the services by its bare name, and the methods below.

    Args:
        settings: for `ServeConfig.from_values`. `port` is ignored: calls come through Ray's port.

    Raises:
        what `serving.components.assemble` raises. Ray shows it as the deployment's message.
    """

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]  # as Ray allows
        self.metrics = Metrics()
        self.drain = Drain()
        self.metrics.follow_calls(lambda: self.drain.in_flight)
        self._fault: Callable[[], str] = str
        self._is_ready = False
        self._open = AsyncExitStack()
        try:
            await self._start(ServeConfig.from_values(settings))
        except BaseException:
            await self._open.aclose()
            raise

    async def _start(self, config: ServeConfig) -> None:
        set_spins(config.openmp_spins)

        from ladder.heaps import share_heaps
        from serving.components import assemble, join
        from serving.scheduler import Utilization
        from serving.versions import Presence

        share_heaps()
        started = time.monotonic()
        self.id = serve.get_replica_context().replica_tag
        self.node = get_node_ip_address()
        config = _of_replica(config, self.node)
        log_packages(config.log_format, config.log_level)  # Ray gives them no handler
        self._config = config
        certificates = open_certificates(config.access)
        if tracer := open_tracer(config.otlp_endpoint, config.trace_ratio):
            self.metrics.tracer = tracer
            self._open.push_async_callback(asyncio.to_thread, tracer.close)
        proxy = proxy_certificate(certificates, os.environ)
        self._access = Access(config.access)
        write_audit(config.access.audit_log)
        self._allow = scrape_guard(self._access, asyncio.get_running_loop())
        self._metrics_host = EVERYWHERE if _is_for_others(config.access) else LOOPBACK
        self._metrics_server = _metrics_server(
            self._metrics_host,
            config,
            self.metrics,
            lambda: self._fault(),
            self._unreadiness,
            certificates,
            self._allow,
        )
        self._open.push_async_callback(asyncio.to_thread, self._metrics_server.close)
        parts = self._parts = await asyncio.to_thread(assemble, config, self.metrics)
        self._fault = parts.fault
        self._open.push_async_callback(asyncio.to_thread, parts.stop)
        self._open.push_async_callback(parts.service.close)
        self._busy = Utilization(lambda: self.metrics.computed_s)
        self._load = Utilization(lambda: _batcher(parts).work.seconds)
        presence = Presence(parts.registry, f"{self.node}/{self.id}", lambda: self.generation)
        self._open.push_async_callback(asyncio.to_thread, presence.stop)
        await join(parts, presence, self.drain)
        self._inbox = Inbox(config.max_in_flight_bytes, self.metrics)
        self._open.callback(self._inbox.close)
        self._servicers = parts.servicers(config, self.metrics, self.drain, presence)
        self._calls = Calls(
            self._servicers,
            self.drain,
            self._inbox,
            self._access,
            self.metrics.tracer,
            own_machine=not config.access.insecure,
        )
        self._checked_at = time.monotonic()
        tasks = {asyncio.create_task(self._leave_when_forgotten())}
        if proxy is not None:
            tasks.add(asyncio.create_task(_keep_certificate(proxy)))
        self._open.push_async_callback(end_tasks, tasks)
        self._is_ready = True
        self._start_s = time.monotonic() - started
        log.info("replica %s is ready after %.1f s at generation %d", self.id, self._start_s, self.generation)

    async def __del__(self) -> None:
        """Close everything. Ray calls it when the calls in flight are answered or out of time, or during a start."""
        self.drain.begin()
        await self._open.aclose()

    async def _leave_when_forgotten(self) -> None:
        left_at = self._checked_at
        while True:
            since = max(self._checked_at, left_at)
            await asyncio.sleep(since + FORGOTTEN_S - time.monotonic())
            if max(self._checked_at, left_at) == since:
                self.drain.leave()
                left_at = time.monotonic()

    def __serve_build_asgi_app__(self) -> "App":
        """The HTTP API. Ray calls this once the replica has started, and then the application for each request."""
        from serving.http.app import make_app

        pages = self._metrics_server.pages
        app = make_app(
            self._servicers,
            self.drain,
            self._inbox,
            pages,
            replace(self._config, port=0),  # that of Ray's proxy is not known here
            self._access,
            self._allow,
            self.metrics,
            echo_id=False,
        )
        return app if self._config.access.insecure else own_machine_alone(app, self._access)

    @property
    def generation(self) -> int:
        """The generation of the registry that is served."""
        return self._parts.pool.snapshot().generation

    async def check_health(self) -> None:
        """Raises RuntimeError: the device thread or the reconciler does not work any more."""
        self._checked_at = time.monotonic()
        if fault := self._parts.fault():
            raise RuntimeError(fault)

    def _unreadiness(self) -> str:
        """Why no requests should be sent here now; empty where they may."""
        if self.drain.draining:
            return "it is shutting down"
        return "" if self._is_ready else "it is loading"

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The figures that `serving.cluster.autoscaling` decides by."""
        return {
            "busy": self._busy.now,
            "load": self._load.now,
            "queued_tokens": _batcher(self._parts).queued_tokens,
            "in_flight": self.drain.in_flight,
        }

    async def status(self) -> dict[str, Any]:
        """This replica's part of `sidecast status`."""
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
            "metrics": f"{LOOPBACK if self._metrics_host == LOOPBACK else self.node}:{self._metrics_server.port}",
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


for _method in (method for service in SERVICES for method in service.methods):
    setattr(Server, _method.name, (_streaming if _method.server_streaming else _answering)(_method.name))


def _of_replica(config: ServeConfig, node: str) -> ServeConfig:
    """`config` with a torch thread for each core that Ray assigned, and with the GPU that it assigned, if any."""
    assigned = ray.get_runtime_context().get_assigned_resources()
    device = config.device
    if device == "auto":  # Ray does not hide GPUs from actors that have none assigned
        device = "cuda" if assigned.get("GPU") else "cpu"
    return replace(config, host=node, device=device, threads=config.threads or max(1, int(assigned.get("CPU", 0))))


def _batcher(parts: "Components") -> "Batcher":
    assert parts.batcher is not None, "assembled parts have one"
    return parts.batcher


def _is_for_others(config: AccessConfig) -> bool:
    """Whether other machines may reach a port of the replica's own."""
    return config.insecure or (bool(config.tls_cert) and config.names_callers)


async def _keep_certificate(proxy: ProxyCertificate) -> None:
    """Give the proxy each renewed certificate."""
    while True:
        try:
            if await asyncio.to_thread(proxy.refresh):
                log.info("the proxy shows the newest certificate")
        except OSError as error:
            log.error("%s", error)
        await asyncio.sleep(CERTIFICATE_EVERY_S)


def _metrics_server(
    host: str,
    config: ServeConfig,
    metrics: Metrics,
    sick: State,
    unready: State,
    certificates: Certificates | None,
    allow: Allow,
) -> MetricsServer:
    """Raises PortInUse, CannotListen."""
    first = config.metrics_port
    for port in (*(range(first, first + METRICS_PORTS) if first else ()), 0):
        try:
            return MetricsServer(host, port, metrics.registry, sick, unready, certificates, allow)
        except PortInUse:
            if not port:
                raise
    raise AssertionError("port 0 is the last")
