"""One serving process: takes its ports, loads, answers, drains.

When it is told to stop, it refuses new calls, answers those in flight, and ends; also where a thread of it hangs.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from ladder.heaps import share_heaps
from serving.access import Access, Certificates, check_exposure, open_certificates, scrape_guard
from serving.api import Drain, Inbox, Interceptor, add_services
from serving.components import Components, assemble, join
from serving.config import ServeConfig
from serving.errors import Draining
from serving.http import wanted_port
from serving.metrics import Metrics
from serving.ports import MetricsServer, grpc_options, listen, take_port
from serving.tracing import open_tracer
from serving.versions import Presence, Progress, address_of

if TYPE_CHECKING:
    from serving.http.listener import HttpServer

log = logging.getLogger(__name__)

CLOSING_S = 0.5
"""How long health watchers have to read the last status."""
ENDING_S = 8.0
"""Longest that the process takes to end after its grace, in seconds. Then it ends without waiting for its threads."""

Assemble = Callable[[ServeConfig, Metrics, Progress | None], Components]


class Server:
    """One server on the running event loop.

    Args:
        assemble: makes the components behind the gRPC services; called on a thread.
    """

    def __init__(self, config: ServeConfig, assemble: Assemble = assemble, progress: Progress | None = None) -> None:
        self.config = config
        self.metrics = Metrics()
        self.drain = Drain()
        self.port = self.metrics_port = 0
        self.admin_port: int | None = None
        """None where changes come by `port`."""
        self.http_port: int | None = None
        """Of the HTTP API; None where there is none."""
        self.metrics.follow_calls(lambda: self.drain.in_flight)
        self._assemble = assemble
        self._progress = progress
        self._components: Components | None = None
        self._presence: Presence | None = None
        self._grpc: list[grpc.aio.Server] = []
        """That of `port`, and that of `admin_port` where it is set."""
        self._inbox: Inbox | None = None
        self._access: Access | None = None
        self._certificates: Certificates | None = None
        self._answering = False
        self._metrics_server: MetricsServer | None = None
        self._http_listener: socket.socket | None = None
        self._http: HttpServer | None = None

    @property
    def task_count(self) -> int:
        """Tasks that can be called now; calls of those that are still loading wait for them."""
        if self._components is None:
            return 0
        state = self._components.pool.snapshot()
        loaded = {task for task, _ in state.residents}
        return len(loaded | {name for name in state.tasks if state.awaited(name)})

    @property
    def address(self) -> str:
        """Where other machines reach its gRPC port."""
        return address_of(self.config.host, self.port)

    @property
    def generation(self) -> int:
        """The registry generation that is served; -1 before the first load."""
        return self._components.pool.snapshot().generation if self._components else -1

    async def start(self) -> None:
        """Take the ports, load, answer. When that fails, the ports are given back.

        Raises:
            Exposed, UnusableFile, PortInUse, CannotListen, HttpNotInstalled: before anything is loaded.
            RegistryError, BackboneError.
            Draining: the server was told to stop while it loads.
        """
        try:
            self._take_ports()
            config = replace(self.config, port=self.port)
            self._components = await asyncio.to_thread(self._assemble, config, self.metrics, self._on_progress)
            self._presence = Presence(self._components.registry, self.address, lambda: self.generation)
            await join(self._components, self._presence, self.drain)
            servicers = self._components.servicers(self.config, self.metrics, self.drain, self._presence)
            for server in self._require_grpc():
                add_services(servicers, server)
                await server.start()
            await self._start_http(servicers)
            self._answering = True
        except BaseException:
            await self._close(0)
            raise

    async def _start_http(self, servicers: Mapping[ServiceDescriptor, Any]) -> None:
        if self._http_listener is None:
            return
        from serving.http.app import make_app
        from serving.http.listener import HttpServer

        assert self._inbox
        assert self._metrics_server
        assert self._access
        pages, allow = self._metrics_server.pages, scrape_guard(self._access, asyncio.get_running_loop())
        assert self._components
        config = replace(self.config, port=self.port, device=self._components.device)
        app = make_app(servicers, self.drain, self._inbox, pages, config, self._access, allow, self.metrics)
        self._http = HttpServer(app, self._http_listener, self._certificates)
        await self._http.start()

    async def stop(self, grace_s: float | None = None) -> bool:
        """Refuse new calls, let those in flight finish, end. False when some were cut off after `grace_s`."""
        grace_s = self.config.grace_s if grace_s is None else grace_s
        log.info("draining: %d calls in flight, %.1f s for them", self.drain.in_flight, grace_s)
        self.drain.begin()
        finished, _ = await asyncio.gather(self.drain.idle(grace_s), self._leave())
        if not finished:
            log.warning("%d calls are cut off after %.1f s", self.drain.in_flight, grace_s)
        await self._close(CLOSING_S)
        return finished

    async def _leave(self) -> None:
        """Withdraw this server's presence, so that no writer waits for it."""
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
        for host in (config.host, config.access.admin_host or config.host):
            check_exposure(host, config.access)
        tracer = self.metrics.tracer = open_tracer(config.otlp_endpoint, config.trace_ratio)
        certificates = self._certificates = open_certificates(config.access)
        access = self._access = Access(config.access)
        options = grpc_options(config.max_message_bytes)
        self._inbox = Inbox(config.max_in_flight_bytes, self.metrics)
        admin = config.access.admin_port
        interceptors = [Interceptor(self.drain, self._inbox, access, allows_changes=admin is None, tracer=tracer)]
        self._grpc.append(grpc.aio.server(interceptors=interceptors, options=options))
        self.port = take_port(self._grpc[-1], config.host, config.port, certificates)
        if admin is not None:
            interceptors = [Interceptor(self.drain, self._inbox, access, tracer=tracer)]
            self._grpc.append(grpc.aio.server(interceptors=interceptors, options=options))
            host = config.access.admin_host or config.host
            self.admin_port = take_port(self._grpc[-1], host, admin, certificates, "admin_port")
        http_port = wanted_port(config)
        if http_port is not None:
            self._http_listener = listen(config.host, http_port, "http_port", "--http-port 0: no HTTP API")
            self.http_port = self._http_listener.getsockname()[1]
        self._metrics_server = MetricsServer(
            config.host,
            config.metrics_port,
            self.metrics.registry,
            sick=self._sickness,
            unready=self._unreadiness,
            certificates=certificates,
            allow=scrape_guard(access, asyncio.get_running_loop()),
        )
        self.metrics_port = self._metrics_server.port

    def _sickness(self) -> str:
        """Why this process should be replaced; empty where it should not."""
        components = self._components  # the metrics thread asks, while another may take them away
        return components.fault() if components else ""

    def _unreadiness(self) -> str:
        """Why no requests should be sent here now; empty where they may."""
        if self.drain.draining:
            return "it is shutting down"
        return "" if self._answering else "it is loading"

    async def _close(self, grace_s: float) -> None:
        await self._leave()
        http = self._http
        self._http = None
        await asyncio.gather(self._close_grpc(grace_s), *((http.stop(),) if http else ()))
        if self._http_listener:
            self._http_listener.close()
        if self._inbox:
            self._inbox.close()
        if self._components:
            await self._components.service.close()
            await asyncio.to_thread(self._components.stop)
        if self._metrics_server:
            await asyncio.to_thread(self._metrics_server.close)
        if self.metrics.tracer:
            await asyncio.to_thread(self.metrics.tracer.close)
        self._components = self._metrics_server = self._http_listener = None
        self._grpc = []

    async def _close_grpc(self, grace_s: float) -> None:
        if not self._answering:
            for server in self._grpc:
                await server.start()  # one that never started does not give its port back
        await asyncio.gather(*(server.stop(grace_s) for server in self._grpc))

    def _require_grpc(self) -> list[grpc.aio.Server]:
        if not self._grpc:
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
    deadline = _Deadline(server.config.grace_s + ENDING_S)
    _drain_on_signals(server.drain, deadline)
    started = time.monotonic()
    try:
        await server.start()
    except Draining:
        return 0
    log.info("ready after %.1f s on port %d", time.monotonic() - started, server.port)
    if on_ready:
        on_ready(server)
    await server.drain.begun()
    if await server.stop():
        deadline.code = 0
    return deadline.code


class _Deadline:
    """Ends the process some time after it was told to stop, whatever hangs: a store, the device, a thread at exit."""

    def __init__(self, seconds: float) -> None:
        self.code = 1
        """The exit code."""
        self._seconds = seconds

    def begin(self) -> None:
        """Let the time run. It is never stopped: the process ends before, or then."""
        threading.Thread(target=self._end, name="deadline", daemon=True).start()

    def _end(self) -> None:
        time.sleep(self._seconds)
        threads = sorted({thread.name for thread in threading.enumerate()} - {"deadline"})
        log.error("%.1f s after it was told to stop, the process ends without: %s", self._seconds, ", ".join(threads))
        logging.shutdown()
        os._exit(self.code)


def _drain_on_signals(drain: Drain, deadline: _Deadline) -> None:
    """The first SIGTERM or SIGINT begins the drain and the deadline; the next one ends the process."""

    def stop(number: int) -> None:
        if drain.draining:
            os._exit(128 + number)
        deadline.begin()
        drain.begin()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
