"""Takes the server's ports, before anything heavy is loaded. Says plainly why a port cannot be had."""

import contextlib
import errno
import socket
import threading
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry, start_http_server

from serving.errors import CannotListen, PortInUse, StartError


class MetricsServer:
    """Prometheus's text over HTTP, in threads of its own.

    Raises:
        PortInUse, CannotListen.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        _probe(host, port, "metrics_port")
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise _refusal(error, host, port, "metrics_port") from None
        self._host = host
        self.port = self._server.server_port

    def close(self) -> None:
        """Give the port back. Blocks until the thread has ended."""
        stopping = threading.Thread(target=self._server.shutdown)
        stopping.start()
        with contextlib.suppress(OSError):  # a connection wakes the thread, which else looks twice a second
            socket.create_connection((self._host, self.port), timeout=1).close()
        stopping.join()
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
    except RuntimeError as error:  # another process took the port since the probe, or the address is none
        raise CannotListen(host, port, str(error).splitlines()[0]) from None


def _probe(host: str, port: int, setting: str) -> None:
    """Bind the port and give it back: gRPC would give no cause, and print to standard error.

    Raises:
        PortInUse, CannotListen.
    """
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
    """Options of a gRPC server: limits of a message, keep-alive, and a port that no other server can share."""
    return [
        ("grpc.so_reuseport", 0),  # else a second server would share the port, and answer half of its calls
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
