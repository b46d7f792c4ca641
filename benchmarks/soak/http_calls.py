"""Requests over HTTP of the soak's callers, each on a connection of its own, so that each has a handshake of TLS."""

import asyncio
import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from benchmarks.harness.secured import Credentials

Answers = dict[str, Any]
"""Version, generation and answers of a request, or the reason of its error."""


class HttpCalls:
    """Asks a server in the short form of its HTTP API.

    Args:
        url: such as https://127.0.0.1:8000.
        timeout_s: of a call, in seconds.
    """

    def __init__(self, url: str, credentials: Credentials, timeout_s: float) -> None:
        self._host = urlsplit(url).netloc
        self._credentials = credentials
        self._timeout_s = timeout_s

    async def predict(self, task: str, rows: Sequence[str], how: Mapping[str, Any]) -> Answers:
        """Answers of a task to these rows. `how`: version, alias or route_key, as `Client.predict` takes them."""
        return await asyncio.to_thread(self._ask, task, {"inputs": list(rows), **_given(how)})

    async def stream(self, task: str, row: str, how: Mapping[str, Any]) -> Answers:
        """The text of one row, put together from server-sent events."""
        return await asyncio.to_thread(self._ask, task, {"inputs": [row], "stream": True, **_given(how)})

    def _ask(self, task: str, body: Mapping[str, Any]) -> Answers:
        connection = http.client.HTTPSConnection(
            self._host, timeout=self._timeout_s, context=self._credentials.context()
        )
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._credentials.token()}"}
        try:
            connection.request("POST", f"/v1/tasks/{task}:predict", json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            return {"reason": f"HTTP: {type(error).__name__}: {error}"}
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            return {"reason": json.loads(data)["reason"]}
        return _of_events(data) if body.get("stream") else _of_document(json.loads(data))


def _given(how: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in how.items() if value is not None}


def _of_document(document: Mapping[str, Any]) -> Answers:
    return _outcome(document, [_value(answer) for answer in document["answers"]])


def _of_events(data: bytes) -> Answers:
    events = [dict(line.split(": ", 1) for line in text.splitlines()) for text in data.decode().strip().split("\n\n")]
    documents = [(event["event"], json.loads(event["data"])) for event in events]
    last, result = documents[-1]
    if last == "error":
        return {"reason": result["reason"]}
    return _outcome(result, ["".join(document["text"] for name, document in documents if name == "piece")])


def _outcome(document: Mapping[str, Any], answers: Sequence[Sequence[float] | str]) -> Answers:
    return {"version": document["version"], "generation": document["generation"], "answers": answers}


def _value(answer: Mapping[str, Any]) -> Sequence[float] | str:
    if "value" in answer:
        return [answer["value"]]
    return next(answer[name] for name in ("scores", "embedding", "text") if name in answer)
