"""Connections: how many there are, and heads of requests that are slow or long."""

import json
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from serving.http import listener
from tests.serving.api_kit import Parlour
from tests.serving.http_api.kit import Asker


def connect(parlour: Parlour) -> socket.socket:
    return socket.create_connection(("127.0.0.1", parlour.server.http_port or 0), timeout=30)


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_stops_is_given_up(lounge: Parlour, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(listener, "HEAD_S", 0.05)
    with connect(lounge) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_head_that_is_too_long_is_refused(lounge: Parlour) -> None:
    with connect(lounge) as connection:
        answer = b""
        with suppress(ConnectionResetError, BrokenPipeError):  # the server has closed the connection meanwhile
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
            for _ in range(2 * listener.MAX_HEAD_BYTES // 1024):
                connection.sendall(b"x" * 1024)
            answer = connection.recv(1024)
        assert not answer or answer.startswith(b"HTTP/1.1 400 ")


def test_what_is_no_request_is_told(lounge: Parlour) -> None:
    with connect(lounge) as connection:
        connection.sendall(b"NO REQUEST\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["reason"] == "MALFORMED_REQUEST"


def test_one_connection_carries_many_requests(lounge: Parlour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_HEAD_BYTES", 400)  # of each request, not of the connection
    ask = Asker(lounge)
    assert [ask("GET", "/healthz").status_code for _ in range(5)] == [200] * 5
    ask.close()


def test_connections_beyond_the_limit_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 2)
    with Parlour(tmp_path, (), http_port=None).open() as parlour, ExitStack() as opened:
        for _ in range(2):
            connection = opened.enter_context(connect(parlour))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        assert is_closed(opened.enter_context(connect(parlour)))
