"""Callers, tenants and TLS on the HTTP port: as on gRPC's."""

from pathlib import Path

import pytest
import requests

from benchmarks.harness.authority import Authority
from serving.access.tokens import create_token
from serving.config import AccessConfig
from tests.serving.api_kit import RTE, SST2, Parlour


def test_callers_are_known_by_their_tokens_over_https(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.issue("server")
    file = tmp_path / "tokens.toml"
    tokens = {
        name: create_token(file, name=name, scopes=[scope], tenant=name)
        for name, scope in (("one", "predict:sst2"), ("all", "read"))
    }
    access = AccessConfig(tokens=str(file), tls_cert=str(certificate), tls_key=str(key))
    with Parlour(tmp_path, [SST2, RTE], access=access, http_port=None).open() as parlour:
        url = f"https://127.0.0.1:{parlour.server.http_port}"

        def ask(method: str, path: str, name: str = "", **how: object) -> requests.Response:
            headers = {"Authorization": f"Bearer {tokens[name]}"} if name else {}
            return requests.request(method, url + path, headers=headers, verify=authority.ca, timeout=30, **how)  # type: ignore[arg-type]

        row = {"json": {"inputs": ["good"]}}
        answered = ask("POST", "/v1/tasks/sst2:predict", "one", **row)
        assert answered.status_code == 200, answered.text
        refused = ask("POST", "/v1/tasks/sst2:predict", **row)
        assert (refused.status_code, refused.json()["reason"]) == (401, "UNAUTHENTICATED")
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        refused = ask("POST", "/v1/tasks/sst2:predict", "all", **row)
        assert (refused.status_code, refused.json()["reason"]) == (403, "PERMISSION_DENIED")
        assert [task["task"] for task in ask("GET", "/v1/tasks", "one").json()["tasks"]] == ["sst2"]
        assert [task["task"] for task in ask("GET", "/v1/tasks", "all").json()["tasks"]] == ["rte", "sst2"]
        assert [ask("GET", "/metrics", name).status_code for name in ("", "one", "all")] == [401, 403, 200]
        assert ask("GET", "/healthz").status_code == 200
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{url}/healthz", timeout=30)
