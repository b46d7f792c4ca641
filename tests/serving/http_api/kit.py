"""Asks a server over HTTP."""

import json
from typing import Any

import requests

from tests.serving.api_kit import Parlour


class Asker:
    """Sends requests to a server's HTTP port over one connection."""

    def __init__(self, parlour: Parlour) -> None:
        self.url = f"http://127.0.0.1:{parlour.server.http_port}"
        self._session = requests.Session()

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        """The response; names of headers with _ for -. A body is JSON unless it is bytes."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        return self._session.request(method, self.url + path, data=body, headers=sent, timeout=30)

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """The document of a response that went well."""
        response = self("POST", path, body, **headers)
        assert response.status_code == 200, response.text
        return response.json()

    def get(self, path: str, **headers: str) -> Any:
        """The document of a response that went well."""
        response = self("GET", path, **headers)
        assert response.status_code == 200, response.text
        return response.json()

    def problem(self, path: str, body: Any, **headers: str) -> tuple[int, str, str]:
        """Status, reason and detail of a POST that fails."""
        response = self("POST", path, body, **headers)
        assert response.headers["Content-Type"] == "application/problem+json", response.text
        problem = response.json()
        assert problem["status"] == response.status_code
        return problem["status"], problem["reason"], problem["detail"]

    def events(self, path: str, body: Any, **headers: str) -> list[tuple[str, str]]:
        """Name and data of each event of a stream."""
        response = self("POST", path, body, **headers)
        assert response.headers["Content-Type"] == "text/event-stream", response.text
        return [_event(text) for text in response.text.removesuffix("\n\n").split("\n\n")]

    def close(self) -> None:
        self._session.close()


def _event(text: str) -> tuple[str, str]:
    lines = dict(line.split(": ", 1) for line in text.splitlines())
    return lines.get("event", ""), lines["data"]
