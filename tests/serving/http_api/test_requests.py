"""What every request passes: ids, types and sizes of bodies, deadlines, callers that leave, errors, and a drain."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from serving.api.inbox import SMALL_BYTES
from serving.errors import Overloaded, SideFailed
from serving.http import call as http_call
from tests.serving.api_kit import SPECS, Parlour
from tests.serving.http_api.kit import Asker

SST2 = "/v1/tasks/sst2:predict"
TITLES = "/v1/tasks/titles:predict"
ROW = {"inputs": ["a"]}


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Parlour]:
    """A server of one test's own."""
    with Parlour(tmp_path, SPECS, http_port=None).open() as opened:
        yield opened


@pytest.fixture
def own(room: Parlour) -> Iterator[Asker]:
    asker = Asker(room)
    yield asker
    asker.close()


def await_in_flight(parlour: Parlour) -> None:
    """Wait until the server answers a request."""
    while not parlour.server.drain.in_flight:
        time.sleep(0.005)


def count(parlour: Parlour, task: str, code: str, version: str = "unknown") -> float:
    labels = {"task": task, "version": version, "code": code}
    return parlour.server.metrics.registry.get_sample_value("sidecast_requests_total", labels) or 0


@pytest.mark.parametrize(("given", "kept"), [("job-7", True), ("a b", False), ("x" * 129, False), ("", False)])
def test_a_requests_id_is_echoed_or_made(ask: Asker, given: str, kept: bool) -> None:
    response = ask("POST", "/v1/tasks/nope:predict", ROW, X_Request_Id=given)
    echoed = response.headers["X-Request-Id"]
    assert response.json()["request_id"] == echoed
    assert (echoed == given) is kept
    assert echoed


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason", "detail"),
    [
        (b"{", {}, 400, "INVALID_INPUT", "body: Invalid JSON"),
        (b"[1]", {}, 400, "INVALID_INPUT", "body: Input should be an object"),
        (b'{"inputs": ["\xff"]}', {}, 400, "INVALID_INPUT", "body: Invalid JSON"),
        (b"[" * 100_000, {}, 400, "INVALID_INPUT", "body: Invalid JSON"),
        (b"", {}, 400, "INVALID_INPUT", "body: Invalid JSON"),
        (b"a=b", {"Content_Type": "application/x-www-form-urlencoded"}, 415, "UNSUPPORTED_MEDIA_TYPE", "send applicat"),
        (b"{}", {"Content_Type": "application/octet-stream"}, 415, "UNSUPPORTED_MEDIA_TYPE", "send application/json"),
        (b"{}", {"Content_Encoding": "gzip"}, 415, "UNSUPPORTED_MEDIA_TYPE", "without compression"),
        (ROW, {"X_Request_Timeout": "soon"}, 400, "INVALID_INPUT", "X-Request-Timeout: must be seconds above 0"),
        (ROW, {"X_Request_Timeout": "0"}, 400, "INVALID_INPUT", "X-Request-Timeout: must be seconds above 0"),
    ],
)
def test_a_body_that_is_none_is_told(
    ask: Asker, body: Any, headers: dict[str, str], status: int, reason: str, detail: str
) -> None:
    found = ask.problem(SST2, body, **headers)
    assert found[:2] == (status, reason)
    assert detail in found[2]


def test_a_body_of_too_many_values_is_refused(ask: Asker) -> None:
    body = b'{"inputs": [' + b"1," * 2**20 + b"1]}"
    assert ask.problem(SST2, body)[2].startswith("body: holds more than 1,048,576 values")


def test_unknown_paths_and_methods_are_told(ask: Asker) -> None:
    response = ask("GET", "/v1/nothing")
    assert (response.status_code, response.json()["reason"]) == (404, "NO_ROUTE")
    response = ask("PUT", "/v1/predict", ROW)
    assert (response.status_code, response.json()["reason"]) == (405, "METHOD_NOT_ALLOWED")
    assert response.headers["Allow"] == "POST"


def test_a_body_over_the_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with Parlour(tmp_path, SPECS, http_port=None, max_message_bytes=2048).open() as parlour:
        ask = Asker(parlour)
        connection = http.client.HTTPConnection("127.0.0.1", parlour.server.http_port or 0, timeout=30)
        connection.putrequest("POST", SST2)
        connection.putheader("Content-Length", str(10**12))
        connection.endheaders()
        response = connection.getresponse()  # nothing of the body was sent
        assert (response.status, json.loads(response.read())["reason"]) == (413, "BODY_TOO_LARGE")
        connection.close()
        chunks = requests.post(ask.url + SST2, data=iter([b" " * 1500] * 2), timeout=30)
        assert (chunks.status_code, chunks.json()["reason"]) == (413, "BODY_TOO_LARGE")
        assert count(parlour, "unknown", "INVALID_ARGUMENT") == 2
        ask.close()


def test_bytes_in_flight_count_with_grpcs(own: Asker, room: Parlour) -> None:
    inbox = room.server._inbox
    assert inbox is not None
    inbox._limit = 2 * SMALL_BYTES
    with inbox.hold(2 * SMALL_BYTES):
        assert own.problem(SST2, {"inputs": ["a" * SMALL_BYTES]})[:2] == (429, "TOO_MANY_BYTES")
        own.post(SST2, ROW)
    for _ in range(1000):  # the caller may have the answer a moment before the server forgets the request
        if not inbox.bytes:
            return
        time.sleep(0.01)
    raise AssertionError(inbox.bytes)


def test_a_deadline_ends_a_request(own: Asker, room: Parlour) -> None:
    room.service.slow = 30
    assert own.problem(SST2, ROW, X_Request_Timeout="0.05")[:2] == (504, "DEADLINE_EXPIRED")
    assert own.problem(SST2, ROW | {"timeout": 0.05}, X_Request_Timeout="20")[:2] == (504, "DEADLINE_EXPIRED")
    assert own.problem(TITLES, ROW | {"timeout": 0.05, "stream": True})[:2] == (504, "DEADLINE_EXPIRED")
    tensor = {"name": "sentence", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    body = {"inputs": [tensor], "parameters": {"timeout": 50_000}}
    assert own.problem("/v2/models/sst2/infer", body)[:2] == (504, "DEADLINE_EXPIRED")
    assert count(room, "sst2", "DEADLINE_EXCEEDED") == 3
    assert room.server.drain.in_flight == 0


@pytest.mark.parametrize("path", [SST2, TITLES])
def test_a_caller_that_leaves_cancels_its_request(room: Parlour, path: str) -> None:
    room.service.slow = 30
    body = json.dumps(ROW | {"stream": path == TITLES}).encode()
    with socket.create_connection(("127.0.0.1", room.server.http_port or 0)) as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body
        )
        await_in_flight(room)
    assert room.service.cancelled.wait(30)


def test_errors_have_the_reasons_and_retry_hints_of_grpc(own: Asker, room: Parlour) -> None:
    room.service.trouble["sst2"] = Overloaded(8, 8, 1.5)
    response = own("POST", SST2, ROW)
    problem = response.json()
    assert (response.status_code, problem["reason"], problem["retry_after_s"]) == (429, "OVERLOADED", 1.5)
    assert response.headers["Retry-After"] == "2"
    assert problem["metadata"]["limit"] == "8"
    room.service.trouble["sst2"] = SideFailed("sst2", 1, "NaN")
    assert own.problem(SST2, ROW)[:2] == (500, "SIDE_FAILED")
    assert count(room, "sst2", "RESOURCE_EXHAUSTED") == 1


def test_an_error_of_ours_is_logged_under_the_requests_id(
    own: Asker, room: Parlour, caplog: pytest.LogCaptureFixture
) -> None:
    room.service.trouble["sst2"] = RuntimeError("secret")
    response = own("POST", SST2, ROW, X_Request_Id="job-7")
    assert (response.status_code, response.json()["reason"]) == (500, "INTERNAL")
    assert "secret" not in response.text
    assert "job-7" in response.json()["detail"]
    assert "internal error job-7: secret" in caplog.text


def test_an_error_in_a_stream_is_its_last_event(own: Asker, room: Parlour) -> None:
    room.service.trouble["titles"] = Overloaded(8, 8, 1.5)
    (first, _), (name, data) = own.events(TITLES, ROW | {"stream": True})
    assert (first, name, json.loads(data)["reason"]) == ("piece", "error", "OVERLOADED")
    [*_, (_, last)] = own.events("/v1/completions", {"model": "titles", "prompt": "a", "stream": True})
    assert json.loads(last)["error"]["code"] == "OVERLOADED"


def test_a_body_that_stops_is_given_up(own: Asker, room: Parlour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_call, "BODY_GAP_S", 0.05)
    with socket.create_connection(("127.0.0.1", room.server.http_port or 0)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_drain_finishes_what_runs_and_refuses_the_rest(own: Asker, room: Parlour) -> None:
    room.service.slow = 30
    with ThreadPoolExecutor() as threads:
        running = threads.submit(own.post, SST2, ROW)
        await_in_flight(room)
        stopped = room.stop(30)
        while not room.server.drain.draining:
            time.sleep(0.005)
        late = Asker(room)
        assert late.problem(SST2, ROW)[:2] == (503, "DRAINING")
        assert late("GET", "/readyz").status_code == 503
        assert late("GET", "/v2/health/ready").json() == {"ready": False}
        assert late("GET", "/healthz").status_code == 200
        late.close()
        room.service.slow = 0
        assert running.result()["task"] == "sst2"
        assert stopped.result(30)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(own.url.rpartition(":")[2])), timeout=1)


def test_what_outlasts_the_grace_is_cut_off(own: Asker, room: Parlour) -> None:
    room.service.slow = 30
    with ThreadPoolExecutor() as threads:
        running = threads.submit(own, "POST", SST2, ROW)
        await_in_flight(room)
        assert room.stop(0.05).result(30) is False
        assert (running.result().status_code, running.result().json()["reason"]) == (503, "DRAINING")
    assert room.service.cancelled.wait(30)


def test_many_connections_are_answered_together(own: Asker, room: Parlour) -> None:
    room.service.slow = 0.2
    most = 0

    def ask() -> int:
        asker = Asker(room)
        try:
            return len(asker.post(SST2, {"inputs": ["a"] * 3})["answers"])
        finally:
            asker.close()

    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(ask) for _ in range(8)]
        while not all(one.done() for one in running):
            most = max(most, room.server.drain.in_flight)
            time.sleep(0.005)
    assert [one.result() for one in running] == [3] * 8
    assert most > 1
