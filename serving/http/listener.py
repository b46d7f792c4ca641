"""The HTTP API on a port: uvicorn, on the event loop that runs already. The one place where uvicorn is configured."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from serving.http.app import App

KEEP_ALIVE_S = 75
"""How long a connection without a request stays open, in seconds: longer than a load balancer keeps it."""
CUT_OFF_S = 1
"""Longest that requests may take to end once the server has stopped waiting for them, in seconds."""


class HttpServer:
    """Answers requests on a socket that listens already. Use it on one event loop.

    Args:
        listener: closed at the end.
    """

    def __init__(self, app: App, listener: socket.socket) -> None:
        self._listener = listener
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=CUT_OFF_S,
        )
        self._server = _Uvicorn(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answer from now on."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="http")
        starting = asyncio.create_task(self._server.begun.wait())
        await asyncio.wait({self._serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            starting.cancel()
            await self._serving  # raises why it has ended

    async def stop(self) -> None:
        """Close the port and the connections; requests that still run have a second."""
        self._server.should_exit = True
        if self._serving:
            await self._serving


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handlers: the process has its own."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
