"""Every request that reaches a servicer passes one place, which may refuse it by its headers, method and message."""

import json
from typing import Any
from unittest.mock import MagicMock

import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from serving.api import SERVICES, Drain, Inbox
from serving.config import ServeConfig
from serving.errors import InvalidInput
from serving.http.app import make_app
from serving.http.call import HttpCall
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


async def ask(app: Any, method: str, path: str, body: Any) -> int:
    """The status of one request, straight to the application."""
    events = [{"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return events.pop() if events else {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    headers = [(b"authorization", b"Bearer x"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return sent[0]["status"]


@pytest.mark.parametrize(("method", "path", "body", "asked"), ASKED)
async def test_a_request_may_be_refused_before_it_reaches_a_servicer(
    method: str, path: str, body: Any, asked: str
) -> None:
    seen: list[tuple[str, str, Message]] = []

    def refuse(call: HttpCall, name: str, message: Message) -> None:
        seen.append((call.headers["authorization"], name, message))
        raise InvalidInput("token", "is not enough")

    servicers = {service: MagicMock() for service in SERVICES}
    inbox = Inbox()
    pages = StatusPages(CollectorRegistry())
    app = make_app(servicers, Drain(), inbox, pages, ServeConfig(backbone="b", registry="r"), refuse)
    try:
        assert await ask(app, method, path, body) == 400
    finally:
        inbox.close()
    [(token, name, message)] = seen
    assert (token, name) == ("Bearer x", asked)
    if "sst2" in json.dumps([path, body]):
        assert "sst2" in str(message)
    assert not any(servicer.mock_calls for servicer in servicers.values())
