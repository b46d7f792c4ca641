"""Every request that reaches a servicer passes one place, which asks who calls and whether they may."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from serving.access import Access
from serving.access.tokens import create_token
from serving.api import SERVICES, Drain, Inbox
from serving.api.services import NATIVE
from serving.config import AccessConfig, ServeConfig
from serving.engine import Piece
from serving.http.app import make_app
from serving.http.call import HttpCall
from serving.ports import StatusPages, allow_all

TENSOR = {"name": "sentence", "datatype": "BYTES", "shape": [1], "data": ["a"]}
ASKED: list[tuple[str, str, Any, str]] = [
    ("POST", "/v1/tasks/sst2:predict", {"inputs": ["a"]}, "predict"),
    ("POST", "/v1/tasks/sst2:predict", {"inputs": ["a"], "stream": True}, "predict"),
    ("POST", "/v1/predict", {"inputs": ["a"], "tasks": ["sst2"]}, "predict"),
    ("POST", "/v1/embeddings", {"model": "sst2", "input": "a"}, "predict"),
    ("POST", "/v1/completions", {"model": "sst2", "prompt": "a"}, "predict"),
    ("POST", "/v1/completions", {"model": "sst2", "prompt": "a", "stream": True}, "predict"),
    ("POST", "/classify", {"model": "sst2", "input": "a"}, "predict"),
    ("POST", "/v2/models/sst2/infer", {"inputs": [TENSOR]}, "predict"),
    ("GET", "/v2/models/sst2", None, "read"),
    ("GET", "/v2/models/sst2/ready", None, "read"),
    ("GET", "/v2", None, "any"),
    ("GET", "/v2/health/ready", None, ""),
    ("GET", "/v1/tasks", None, "any"),
    ("GET", "/v1/tasks/sst2", None, "read"),
    ("GET", "/v1/models", None, "any"),
    ("GET", "/v1/models/sst2", None, "read"),
]


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    opened = Inbox()
    yield opened
    opened.close()


async def ask(app: Any, method: str, path: str, body: Any, token: str | None = None) -> tuple[int, bytes]:
    """Status and body of the response to one request, straight to the application."""
    events = [{"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return events.pop() if events else await asyncio.Event().wait()

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    headers = [(b"content-type", b"application/json")]
    if token:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert [event.get("more_body", False) for event in sent[1:]] == [True] * (len(sent) - 2) + [False]
    return sent[0]["status"], b"".join(event["body"] for event in sent[1:])


def application(inbox: Inbox, servicers: Any, access: Access | None = None) -> Any:
    config = ServeConfig(backbone="b", registry="r")
    access = access or Access(AccessConfig())
    return make_app(servicers, Drain(), inbox, StatusPages(CollectorRegistry()), config, access, allow_all)


@pytest.mark.parametrize(("method", "path", "body", "needs"), ASKED)
async def test_a_request_needs_what_its_method_needs_over_grpc(
    inbox: Inbox, tmp_path: Path, method: str, path: str, body: Any, needs: str
) -> None:
    file = tmp_path / "tokens.toml"
    scopes = ("predict:sst2", "read:sst2", "predict:mrpc", "read:mrpc")
    tokens = {scope: create_token(file, name=scope.replace(":", "-"), scopes=[scope]) for scope in scopes}
    access = Access(AccessConfig(tokens=str(file)))
    for scope in (None, *scopes):
        verb, _, task = (scope or ":").partition(":")
        servicers = {service: MagicMock() for service in SERVICES}
        status, answer = await ask(application(inbox, servicers, access), method, path, body, tokens.get(scope or ""))
        allowed = not needs or (scope and needs in (verb, "any", "read") and (task == "sst2" or needs == "any"))
        reached = any(servicer.mock_calls for servicer in servicers.values())
        assert reached == bool(allowed), (scope, status, answer)
        if not allowed:
            assert status == (403 if scope else 401)
            assert json.loads(answer)["reason"] == ("PERMISSION_DENIED" if scope else "UNAUTHENTICATED")


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
