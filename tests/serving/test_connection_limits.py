"""Limits of a gRPC port's connections: how many, how long they may be silent, and what their calls may have."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc
from serving import ports
from serving.api.status import DETAILS_KEY
from tests.serving.api_kit import SST2, Parlour

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How an HTTP/2 connection begins: the preface, and settings without a value."""
STREAMS = b"\0\3"
"""The setting of how many streams a connection may have."""


@contextmanager
def ready(address: str) -> Iterator[open_inference_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def connect(parlour: Parlour, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", parlour.server.port), timeout=30)
    connection.sendall(sent)
    return connection


def test_connections_beyond_the_limit_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "MAX_GRPC_CONNECTIONS", 2)
    with Parlour(tmp_path, [SST2]).open() as parlour, ready(parlour.address) as first, ready(parlour.address) as second:
        for stub in (first, second):
            assert stub.ServerReady(oip.ServerReadyRequest(), timeout=30).ready
        with ready(parlour.address) as third, pytest.raises(grpc.RpcError) as caught:
            third.ServerReady(oip.ServerReadyRequest(), timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert first.ServerReady(oip.ServerReadyRequest(), timeout=30).ready


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        ({"HANDSHAKE_MS": 100}, b""),
        ({"IDLE_MS": 100}, PREFACE),
        ({"SILENT_MS": 100, "PING_MS": 100}, PREFACE),
    ],
    ids=["no handshake", "idle", "no sign of life"],
)
def test_a_connection_that_stays_silent_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], sent: bytes
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(ports, name, value)
    with Parlour(tmp_path, []).open() as parlour, connect(parlour, sent) as connection:
        while connection.recv(4096):  # the test's timeout says that it was not
            pass


def test_a_call_has_a_limit_of_metadata_and_a_connection_one_of_calls(parlour: Parlour) -> None:
    large = [("x-large", "x" * (ports.MAX_METADATA_BYTES + 1))]
    with ready(parlour.address) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.ServerReady(oip.ServerReadyRequest(), metadata=large, timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert DETAILS_KEY not in dict(caught.value.trailing_metadata() or ())  # it never came to a servicer
    with connect(parlour, PREFACE) as connection:
        settings = connection.recv(4096)
    assert STREAMS + ports.MAX_STREAMS.to_bytes(4) in settings
