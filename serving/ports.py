"""Takes the server's ports, before anything heavy is loaded. Says plainly why one cannot be had."""

import errno
import socket
import socketserver
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc.aio
from prometheus_client import CollectorRegistry, make_wsgi_app

from serving.errors import CannotListen, PortInUse, StartError

STOP_POLL_S = 0.05
"""How soon the metrics' thread sees that it shall end."""


class _HttpServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class MetricsServer:
    """Prometheus's text over HTTP, in threads of its own."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        """Raises PortInUse, CannotListen."""
        family = _probe(host, port, "metrics_port")
        kind = type("_OfFamily", (_HttpServer,), {"address_family": family})
        try:
            self._server = make_server(host, port, make_wsgi_app(registry), kind, _Silent)
        except OSError as error:
            raise _refusal(error, host, port, "metrics_port") from None
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(STOP_POLL_S,), daemon=True)
        self._thread.start()

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


def _probe(host: str, port: int, setting: str) -> int:
    """Ask the system for the port, and give it back: gRPC would tell no cause, and print to standard error.

    Returns the address family. Raises PortInUse, CannotListen.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return family
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
