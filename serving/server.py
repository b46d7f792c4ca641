"""One serving process: takes its ports, loads, answers, drains.

When it is told to stop, it refuses new calls, answers those in flight, and ends; also where a thread of it hangs.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import grpc.aio

from serving.api import Drain, Inbox, Interceptor, add_services
from serving.components import Components, assemble, join
from serving.config import ServeConfig
from serving.engine import share_heaps
from serving.errors import Draining
from serving.metrics import Metrics
from serving.ports import MetricsServer, grpc_options, take_port
from serving.versions import Presence, Progress, address_of

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
        self.metrics.follow_calls(lambda: self.drain.in_flight)
        self._assemble = assemble
        self._progress = progress
        self._components: Components | None = None
        self._presence: Presence | None = None
        self._grpc: grpc.aio.Server | None = None
        self._inbox: Inbox | None = None
        self._answering = False
        self._http: MetricsServer | None = None

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
            PortInUse, CannotListen: before anything is loaded.
            RegistryError, BackboneError.
            Draining: the server was told to stop while it loads.
        """
        try:
            self._take_ports()
            config = replace(self.config, port=self.port)
            self._components = await asyncio.to_thread(self._assemble, config, self.metrics, self._on_progress)
            self._presence = Presence(self._components.registry, self.address, lambda: self.generation)
            await join(self._components, self._presence, self.drain)
            server = self._require_grpc()
            add_services(self._components.servicers(self.config, self.metrics, self.drain, self._presence), server)
            await server.start()
            self._answering = True
        except BaseException:
            await self._close(0)
            raise

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
        options = grpc_options(config.max_message_bytes)
        self._inbox = Inbox(config.max_in_flight_bytes, self.metrics)
        self._grpc = grpc.aio.server(interceptors=[Interceptor(self.drain, self._inbox)], options=options)
        self.port = take_port(self._grpc, config.host, config.port)
        self._http = MetricsServer(
            config.host, config.metrics_port, self.metrics.registry, sick=self._sickness, unready=self._unreadiness
        )
        self.metrics_port = self._http.port

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
        if self._grpc:
            if not self._answering:
                await self._grpc.start()  # one that never started does not give its port back
            await self._grpc.stop(grace_s)
        if self._inbox:
            self._inbox.close()
        if self._components:
            await self._components.service.close()
            await asyncio.to_thread(self._components.stop)
        if self._http:
            await asyncio.to_thread(self._http.close)
        self._grpc = self._components = self._http = None

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
