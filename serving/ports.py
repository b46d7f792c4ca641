"""Takes the server's ports, before anything heavy is loaded. Says plainly why a port cannot be had.

The metrics port answers `/metrics`, `/healthz` and `/readyz` over HTTP, on an event loop in a thread of its own. The
HTTP API has the same pages on its port.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, make_wsgi_app

from serving.access import Certificates, Pem
from serving.errors import AccessError, CannotListen, PortInUse, Unauthenticated

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""Most connections to the metrics port at once. Further ones are closed at once."""
REQUEST_S = 5.0
"""Longest that a caller may take to send its request, in seconds."""
ANSWER_S = 30.0
"""Longest that it may take to read the answer, in seconds."""
MAX_SCRAPES = 4
"""Most answers with metrics in memory at once: one of ten thousand tasks has tens of MB. Health checks do not wait."""
MAX_REQUEST_BYTES = 1 << 14
"""Most bytes of a request's line and headers."""

PLAIN_TEXT = (("Content-Type", "text/plain; charset=utf-8"),)
"""Headers of an answer that is one line."""

State = Callable[[], str]
"""Why something is not so now, in a clause; empty where it is."""


Allow = Callable[[Mapping[str, str], str], Awaitable[object]]
"""Told a request's headers and the caller's address; raises AccessError where the caller may not read the metrics."""


async def allow_all(headers: Mapping[str, str], peer: str) -> None:
    """Let every caller read the metrics."""


class Answer(NamedTuple):
    """What a GET is answered with."""

    status: str
    """Such as "200 OK"."""
    body: bytes
    headers: tuple[tuple[str, str], ...] = PLAIN_TEXT


class StatusPages:
    """The answers to `/metrics`, `/healthz` and `/readyz`.

    Args:
        sick: why this process should be replaced by another: `/healthz` then answers 503 and says so.
        unready: why it takes no requests now: `/readyz` then answers 503 and says so.
    """

    def __init__(self, registry: CollectorRegistry, sick: State = lambda: "", unready: State = lambda: "") -> None:
        self._app = make_wsgi_app(registry)
        self.states = {"/healthz": sick, "/readyz": unready}
        """By path."""

    def health(self, path: str) -> Answer:
        """The answer to a health check, one of `states`."""
        why = self.states[path]()
        return Answer("503 Service Unavailable", f"{why}\n".encode()) if why else Answer("200 OK", b"ok\n")

    def metrics(self, query: str, headers: Mapping[str, str]) -> Answer:
        """prometheus-client's answer, in the format and compression that the caller accepts. Takes a while.

        Args:
            headers: of the request; names are in lower case.
        """
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": query,
            "HTTP_ACCEPT": headers.get("accept", ""),
            "HTTP_ACCEPT_ENCODING": headers.get("accept-encoding", ""),
        }
        started: list[tuple[str, list[tuple[str, str]]]] = []
        body = b"".join(self._app(environ, lambda status, sent, *_: started.append((status, sent))))
        [(status, sent)] = started
        return Answer(status, body, tuple(sent))


class MetricsServer:
    """The status pages on a port of their own. One request for each connection.

    Args:
        sick, unready: as those of StatusPages.
        certificates: serves HTTPS with them. Where they ask for client certificates, `/metrics` needs one; the health
            checks do not, because Kubernetes can show none.
        allow: decides who may read `/metrics`.

    Raises:
        PortInUse, CannotListen.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        sick: State = lambda: "",
        unready: State = lambda: "",
        certificates: Certificates | None = None,
        allow: Allow = allow_all,
    ) -> None:
        self._certificates = certificates
        self._allow = allow
        self.pages = StatusPages(registry, sick, unready)
        self._connections = 0
        self._scrapes = asyncio.Semaphore(MAX_SCRAPES)
        listener = listen(host, port, "metrics_port")
        self.port: int = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the port back. Blocks until the thread has ended."""
        with contextlib.suppress(RuntimeError):  # closed before
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        tls: dict[str, Any] = {}
        if self._certificates:
            context = self._certificates.ssl_context(optional_client=True)
            tls = {"ssl": context, "ssl_handshake_timeout": REQUEST_S, "ssl_shutdown_timeout": REQUEST_S}
        server = await asyncio.start_server(self._connected, sock=listener, limit=MAX_REQUEST_BYTES, **tls)
        await self._ending.wait()
        server.close()  # the runner cancels what is left of the connections

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        try:
            await self._converse(reader, writer)
            writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()  # the caller left, or is too slow, or sends too much
        except Exception:
            log.exception("a request to the metrics port failed")
            writer.transport.abort()
        finally:
            self._connections -= 1

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(REQUEST_S):
            head = await reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = line.partition(" ")
        path, _, query = rest.rpartition(" ")[0].partition("?")
        if method in ("GET", "HEAD") and path == "/metrics":
            headers = dict(map(_header, lines))
            try:
                await self._check(headers, writer)
            except AccessError as error:
                await _send(writer, _refusal_of(error), method)
                return
            async with self._scrapes:
                answer = await asyncio.to_thread(self.pages.metrics, query, headers)
                await _send(writer, answer, method)
        else:
            await _send(writer, self._answer(method, path), method)

    async def _check(self, headers: Mapping[str, str], writer: asyncio.StreamWriter) -> None:
        """Raises AccessError: the caller may not read the metrics."""
        certificates = self._certificates
        if certificates and certificates.asks_clients and not writer.get_extra_info("peercert"):
            raise Unauthenticated("show a client certificate")
        await self._allow(headers, str((writer.get_extra_info("peername") or ("",))[0]))

    def _answer(self, method: str, path: str) -> Answer:
        if method not in ("GET", "HEAD"):
            return Answer("405 Method Not Allowed", b"use GET\n", (("Allow", "GET, HEAD"),))
        if path not in self.pages.states:
            return Answer("404 Not Found", f"there are /metrics, {', '.join(self.pages.states)}\n".encode())
        return self.pages.health(path)


def _refusal_of(error: AccessError) -> Answer:
    if isinstance(error, Unauthenticated):
        return Answer("401 Unauthorized", f"{error}\n".encode(), (*PLAIN_TEXT, ("WWW-Authenticate", "Bearer")))
    return Answer("403 Forbidden", f"{error}\n".encode())


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


async def _send(writer: asyncio.StreamWriter, answer: Answer, method: str) -> None:
    """Hand an answer to the operating system, all of it. Raises TimeoutError: the caller does not read it."""
    headers = (*answer.headers, ("Content-Length", str(len(answer.body))), ("Connection", "close"))
    lines = [f"HTTP/1.1 {answer.status}", *(f"{name}: {value}" for name, value in headers), "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + (b"" if method == "HEAD" else answer.body))
    writer.transport.set_write_buffer_limits(0)  # so that `drain` waits for the last byte
    async with asyncio.timeout(ANSWER_S):
        await writer.drain()


def take_port(
    server: grpc.aio.Server, host: str, port: int, certificates: Certificates | None = None, setting: str = "port"
) -> int:
    """Listen for gRPC, with TLS where there are certificates. Returns the port, which is new when 0 was asked for.

    Raises:
        PortInUse, CannotListen.
    """
    listen(host, port, setting).close()  # gRPC itself would give no cause, and print to standard error
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if certificates:
            return server.add_secure_port(address, _credentials(certificates))
        return server.add_insecure_port(address)
    except RuntimeError as error:  # another process took the port since then, or the address is none
        raise CannotListen(host, port, str(error).splitlines()[0]) from None


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """gRPC asks for the certificate of every new connection, on a thread of its own."""
    given = certificates.current

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        newest = certificates.current
        if newest is given:
            return None  # the one that is in use stays
        configuration = _configuration(newest)
        given = newest
        return configuration

    fetch: Any = renewed  # grpc-stubs does not know that None keeps the certificate
    return grpc.dynamic_ssl_server_credentials(_configuration(given), fetch, certificates.asks_clients)


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.client_ca)


def listen(host: str, port: int, setting: str, otherwise: str = "0: a free one") -> socket.socket:
    """A socket that listens there.

    Args:
        setting: the setting that names the port.
        otherwise: what another choice of it means, for a message.

    Raises:
        PortInUse, CannotListen.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(port, setting, otherwise) from None
        raise CannotListen(host, port, error.strerror or str(error)) from None


def grpc_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Options of a gRPC server: limits of a message, keep-alive, and a port that no other server can share."""
    return [
        ("grpc.so_reuseport", 0),  # else a second server would share the port, and answer half of its calls
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
