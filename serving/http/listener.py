"""The HTTP API on a port: uvicorn, on the event loop that runs already. The one place where uvicorn is configured."""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.access import Certificates
from serving.http.app import App
from serving.http.errors import MalformedRequest
from serving.http.problem import MEDIA_TYPE, problem_of

KEEP_ALIVE_S = 75
"""How long a connection without a request stays open, in seconds: longer than a load balancer keeps it."""
HEAD_S = 10.0
"""Longest that a caller may take to send the line and the headers of a request, in seconds."""
MAX_HEAD_BYTES = 2**16
"""Most bytes of a request's line and headers; a head that came in one piece may have a little more."""
MAX_CONNECTIONS = 4096
"""Most connections at once. Further ones are closed at once."""
CUT_OFF_S = 1
"""Longest that requests may take to end once the server has stopped waiting for them, in seconds."""


class HttpServer:
    """Answers requests on a socket that listens already. Use it on one event loop.

    Args:
        listener: closed at the end.
        certificates: serves HTTPS with them, as they are at each handshake.
    """

    def __init__(self, app: App, listener: socket.socket, certificates: Certificates | None = None) -> None:
        self._listener = listener
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            ssl_context_factory=(lambda *_: certificates.ssl_context()) if certificates else None,
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
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # TLS may wait half a minute for the caller's goodbye
        await asyncio.sleep(0)  # an aborted connection is closed by the event loop's next turn


class _Connection(HttpToolsProtocol):
    """Uvicorn's connection, with bounds on how many there are and on the time and the size of a request's head."""

    _waiting: asyncio.TimerHandle | None = None
    """Ends the connection; set while a head is not complete."""
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiting is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"The line and the headers of a request may have {MAX_HEAD_BYTES} bytes.")

    def send_400_response(self, msg: str) -> None:
        body = to_json(problem_of(MalformedRequest(msg), secrets.token_hex(8)))
        headers = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{headers}".encode() + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head_bytes = 0
        self._waiting = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


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
