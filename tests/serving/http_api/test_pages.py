"""The pages for probes and Prometheus, the OpenAPI document, and the port."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.config import ServeConfig
from serving.errors import HttpNotInstalled, PortInUse
from serving.http import port
from serving.http.port import wanted_port
from tests.serving.api_kit import SPECS, Parlour
from tests.serving.http_api.kit import Asker


def test_probes_and_metrics_are_those_of_the_metrics_port(ask: Asker) -> None:
    assert ask("GET", "/healthz").text == "ok\n"
    assert ask("GET", "/readyz").text == "ok\n"
    response = ask("GET", "/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"sidecast_requests", "sidecast_in_flight_calls"} <= names


def test_the_document_names_every_operation_once_and_what_it_needs(ask: Asker) -> None:
    document = ask.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    for path, methods in document["paths"].items():
        wanted = set(re.findall(r"\{(\w+)\}", path))
        for operation in methods.values():
            assert {each["name"] for each in operation["parameters"] if each["in"] == "path"} == wanted
    assert {"Problem", "PredictBody", "Predicted"} <= document["components"]["schemas"].keys()
    assert not set(_references(document)) - {
        f"#/components/schemas/{name}" for name in document["components"]["schemas"]
    }


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [each for inner in value.values() for each in _references(inner)]
    return [each for inner in value for each in _references(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [({}, 8000), ({"port": 0}, 0), ({"http_port": 0}, None), ({"http_port": 9000}, 9000)],
)
def test_the_port_is_as_set_or_8000(settings: dict[str, Any], wanted: int | None) -> None:
    assert wanted_port(ServeConfig(backbone="b", registry="r", **settings)) == wanted


def test_without_the_packages_there_is_no_port_unless_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "PACKAGES", ("starlette", "no_such_package"))
    assert wanted_port(ServeConfig(backbone="b", registry="r")) is None
    with pytest.raises(HttpNotInstalled, match=r"http_port is 9000.*pip install 'sidecast\[http\]'.*--http-port 0"):
        wanted_port(ServeConfig(backbone="b", registry="r", http_port=9000))


def test_a_taken_port_is_told_with_the_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        wanted = f"port {number} is in use; .* choose another http_port \\(--http-port 0: no HTTP API\\)"
        with pytest.raises(PortInUse, match=wanted), Parlour(tmp_path, SPECS, http_port=number).open():
            pass


def test_a_server_may_have_no_http_api(parlour: Parlour) -> None:
    assert parlour.server.http_port is None
