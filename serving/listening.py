"""Takes the server's ports, before anything heavy is loaded. Says plainly why one cannot be had."""

import errno
import socket
import threading
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc.aio
from prometheus_client import CollectorRegistry, start_http_server

from serving.errors import ServingError


class StartError(ServingError):
    """The server cannot start like this. Never seen by a caller."""

    reason = "START"


class PortInUse(StartError):
    """`setting` is the one that names the port."""

    reason = "PORT_IN_USE"

    def __init__(self, port: int, setting: str = "port") -> None:
        super().__init__(port, setting)
        self.port, self.setting = port, setting

    def __str__(self) -> str:
        return f"port {self.port} is in use; stop what listens there, or choose another {self.setting} (0: a free one)"


class CannotListen(StartError):
    reason = "CANNOT_LISTEN"

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(host, port, why)
        self.host, self.port, self.why = host, port, why

    def __str__(self) -> str:
        return f"cannot listen on {self.host} port {self.port}: {self.why}; choose another host or port"


class MetricsServer:
    """Prometheus's text over HTTP, in threads of its own."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        """Raises PortInUse, CannotListen."""
        _probe(host, port, "metrics_port")
        try:
            started: tuple[WSGIServer, threading.Thread] = start_http_server(port, host, registry)
        except OSError as error:
            raise _refusal(error, host, port, "metrics_port") from None
        self._server, self._thread = started
        self.port = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def take_port(server: grpc.aio.Server, host: str, port: int) -> int:
    """Listen for gRPC. Returns the port, which is new when 0 was asked for.

    Raises:
        PortInUse, CannotListen.
    """
    _probe(host, port, "port")
    try:
        return server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:  # somebody was faster since the probe, or the address is none
        raise CannotListen(host, port, str(error).splitlines()[0]) from None


def _probe(host: str, port: int, setting: str) -> None:
    """gRPC tells no cause when it cannot listen, and prints to standard error; so ask the system first."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise _refusal(error, host, port, setting) from None


def _refusal(error: OSError, host: str, port: int, setting: str) -> StartError:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(port, setting)
    return CannotListen(host, port, error.strerror or str(error))


def grpc_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server would share the port, and answer half of its calls
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
