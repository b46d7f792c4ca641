"""Every request that reaches a servicer passes one place, which may refuse it by its headers, method and message."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from serving.api import SERVICES, Drain, Inbox
from serving.api.services import NATIVE
from serving.config import ServeConfig
from serving.engine import Piece
from serving.errors import InvalidInput
from serving.http.app import make_app
from serving.http.call import HttpCall
from serving.http.services import admit_all
from serving.ports import StatusPages

TENSOR = {"name": "sentence", "datatype": "BYTES", "shape": [1], "data": ["a"]}
INFER = "/inference.GRPCInferenceService"
ASKED: list[tuple[str, str, Any, str]] = [
    ("POST", "/v1/tasks/sst2:predict", {"inputs": ["a"]}, "/sidecast.v1.Sidecast/Predict"),
    ("POST", "/v1/tasks/sst2:predict", {"inputs": ["a"], "stream": True}, "/sidecast.v1.Sidecast/Generate"),
    ("POST", "/v1/predict", {"inputs": ["a"], "tasks": ["sst2"]}, "/sidecast.v1.Sidecast/PredictTasks"),
    ("POST", "/v1/embeddings", {"model": "sst2", "input": "a"}, "/sidecast.v1.Sidecast/Predict"),
    ("POST", "/v1/completions", {"model": "sst2", "prompt": "a"}, "/sidecast.v1.Sidecast/Predict"),
    ("POST", "/v1/completions", {"model": "sst2", "prompt": "a", "stream": True}, "/sidecast.v1.Sidecast/Generate"),
    ("POST", "/classify", {"model": "sst2", "input": "a"}, "/sidecast.v1.Sidecast/Predict"),
    ("POST", "/v2/models/sst2/infer", {"inputs": [TENSOR]}, f"{INFER}/ModelInfer"),
    ("GET", "/v2/models/sst2", None, f"{INFER}/ModelMetadata"),
    ("GET", "/v2/models/sst2/ready", None, f"{INFER}/ModelReady"),
    ("GET", "/v2", None, f"{INFER}/ServerMetadata"),
    ("GET", "/v2/health/ready", None, f"{INFER}/ServerReady"),
    ("GET", "/v1/tasks", None, "/sidecast.v1.Admin/ListTasks"),
    ("GET", "/v1/tasks/sst2", None, "/sidecast.v1.Admin/GetTask"),
    ("GET", "/v1/models", None, "/sidecast.v1.Admin/ListTasks"),
    ("GET", "/v1/models/sst2", None, "/sidecast.v1.Admin/GetTask"),
]


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    opened = Inbox()
    yield opened
    opened.close()


async def ask(app: Any, method: str, path: str, body: Any) -> tuple[int, bytes]:
    """Status and body of the response to one request, straight to the application."""
    events = [{"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return events.pop() if events else await asyncio.Event().wait()

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    headers = [(b"authorization", b"Bearer x"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert [event.get("more_body", False) for event in sent[1:]] == [True] * (len(sent) - 2) + [False]
    return sent[0]["status"], b"".join(event["body"] for event in sent[1:])


def application(inbox: Inbox, servicers: Any, admit: Any = admit_all) -> Any:
    config = ServeConfig(backbone="b", registry="r")
    return make_app(servicers, Drain(), inbox, StatusPages(CollectorRegistry()), config, admit)


@pytest.mark.parametrize(("method", "path", "body", "asked"), ASKED)
async def test_a_request_may_be_refused_before_it_reaches_a_servicer(
    inbox: Inbox, method: str, path: str, body: Any, asked: str
) -> None:
    seen: list[tuple[str, str, Message]] = []

    def refuse(call: HttpCall, name: str, message: Message) -> None:
        seen.append((call.headers["authorization"], name, message))
        raise InvalidInput("token", "is not enough")

    servicers = {service: MagicMock() for service in SERVICES}
    status, _ = await ask(application(inbox, servicers, refuse), method, path, body)
    assert status == 400
    [(token, name, message)] = seen
    assert (token, name) == ("Bearer x", asked)
    if "sst2" in json.dumps([path, body]):
        assert "sst2" in str(message)
    assert not any(servicer.mock_calls for servicer in servicers.values())


def stop_waiting(call: HttpCall) -> None:
    call.limit(0)


def cut_off(call: HttpCall) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


@pytest.mark.parametrize(("end", "reason"), [(stop_waiting, b"DEADLINE_EXPIRED"), (cut_off, b"DRAINING")])
async def test_a_stream_that_is_ended_says_why(inbox: Inbox, end: Callable[[HttpCall], None], reason: bytes) -> None:
    async def generate(request: Message, call: HttpCall) -> AsyncGenerator[Piece, None]:
        yield Piece((1,), "a")
        end(call)
        await asyncio.Event().wait()

    servicers = {service: MagicMock() for service in SERVICES}
    servicers[NATIVE].generate = generate
    app = application(inbox, servicers)
    status, body = await ask(app, "POST", "/v1/tasks/titles:predict", {"inputs": ["a"], "stream": True})
    first, last, _ = body.split(b"\n\n")
    assert status == 200
    assert first.startswith(b"event: piece")
    assert last.startswith(b"event: error")
    assert reason in last
