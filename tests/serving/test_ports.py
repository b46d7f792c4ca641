"""The metrics port: its address, its paths, its health checks, and callers that send nothing or read nothing."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from prometheus_client import CollectorRegistry, Gauge

from serving import ports
from serving.ports import MAX_CONNECTIONS, MAX_SCRAPES, MetricsServer, State


@contextmanager
def listening(
    host: str = "127.0.0.1", sick: State = str, unready: State = str, text: str = "Rows."
) -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Gauge("rows", text, registry=registry).set(7)
    server = MetricsServer(host, 0, registry, sick, unready)
    try:
        yield server
    finally:
        server.close()


def ask(server: MetricsServer, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, server.port, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "localhost"])
def test_metrics_are_served_until_close_gives_the_port_back(host: str) -> None:
    with listening(host) as server:
        assert server.port
        status, text = ask(server, "/metrics", host=host)
        assert status == 200
        assert "rows 7.0" in text
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, server.port), family=family):
        pass


@pytest.mark.parametrize(
    ("path", "method", "status", "text"),
    [
        ("/metrics?name[]=other", "GET", 200, ""),
        ("/metrics", "HEAD", 200, ""),
        ("/metrics", "POST", 405, "use GET\n"),
        ("/", "GET", 404, "there are /metrics, /healthz, /readyz\n"),
        ("/metrics/", "GET", 404, "there are /metrics, /healthz, /readyz\n"),
        ("/healthz", "GET", 200, "ok\n"),
        ("/readyz?verbose", "GET", 200, "ok\n"),
    ],
)
def test_every_path_has_its_answer(path: str, method: str, status: int, text: str) -> None:
    with listening() as server:
        assert ask(server, path, method) == (status, text)


def test_health_checks_say_what_is_wrong_now() -> None:
    states = {"sick": "", "unready": "it loads"}
    with listening(sick=lambda: states["sick"], unready=lambda: states["unready"]) as server:
        assert ask(server, "/healthz") == (200, "ok\n")
        assert ask(server, "/readyz") == (503, "it loads\n")
        states |= {"sick": "the device fails", "unready": ""}
        assert ask(server, "/healthz") == (503, "the device fails\n")
        assert ask(server, "/readyz") == (200, "ok\n")


def test_half_sent_requests_take_no_threads_and_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "REQUEST_S", 0.5)
    with listening() as server:
        threads = threading.active_count()
        callers = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(3 * MAX_CONNECTIONS)]
        try:
            for caller in callers:
                with suppress(OSError):  # it was past the most connections
                    caller.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
            assert threading.active_count() <= threads + 1
            for caller in callers:
                with suppress(ConnectionError):
                    assert caller.recv(1) == b""
        finally:
            for caller in callers:
                caller.close()
        assert ask(server, "/healthz") == (200, "ok\n")


def test_answers_that_nobody_reads_are_given_up_and_hold_up_no_health_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "ANSWER_S", 0.5)
    with listening(text="x" * (16 << 20)) as server:
        callers = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(MAX_SCRAPES)]
        try:
            for caller in callers:
                caller.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert ask(server, "/healthz") == (200, "ok\n")
            status, text = ask(server, "/metrics")
            assert (status, "rows 7.0" in text) == (200, True)
        finally:
            for caller in callers:
                caller.close()


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"G" * 100_000])
def test_what_is_no_request_ends_its_connection_alone(data: bytes) -> None:
    with listening() as server:
        caller = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        with caller, suppress(ConnectionError):
            caller.sendall(data)
            while caller.recv(1 << 16):
                pass
        assert ask(server, "/readyz") == (200, "ok\n")
