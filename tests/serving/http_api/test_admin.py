"""The registry's verbs over HTTP: what they change, and who may not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.access.tokens import create_token
from serving.config import AccessConfig
from tests.serving.api_kit import RTE, SST2, Parlour
from tests.serving.http_api.kit import Asker


@pytest.fixture
def parlour(tmp_path: Path) -> Iterator[Parlour]:
    """A server whose registry a test may change: sst2 has two versions."""
    parlour = Parlour(tmp_path, [SST2], http_port=None)
    parlour.publish(SST2, 1)
    with parlour.open():
        yield parlour


@pytest.fixture
def ask(parlour: Parlour) -> Iterator[Asker]:
    asker = Asker(parlour)
    yield asker
    asker.close()


def test_a_canary_begins_and_is_promoted_and_rolled_back(ask: Asker, parlour: Parlour) -> None:
    route = {"shares": [{"version": 2, "share": 500}], "bounds": {"error_rate": 0.01}}
    done = ask.post("/v1/tasks/sst2:setRoute", {"route": route, "author": "ada", "message": "try it"})
    assert done["route"] == {"version": 1, "shadows": [], **route, "bounds": {"error_rate": 0.01, "min_rows": 100}}
    assert ask.get("/v1/tasks/sst2")["routes"]["production"] == done["route"]
    assert ask.post("/v1/tasks/sst2:rollback", {})["canary_ended"]
    ask.post("/v1/tasks/sst2:setRoute", {"version": 2})
    assert parlour.registry.state().task("sst2").serving == {"production": 2}
    assert ask.post("/v1/tasks/sst2:rollback", {"to": 1})["version_to"] == 1
    ask.post("/v1/tasks/sst2:retire", {"version": 2})
    assert parlour.registry.state().task("sst2").live == (1,)
    commits = ask.get("/v1/history?task=sst2&limit=5")["commits"]
    assert [commit["actions"][0]["verb"] for commit in commits] == [
        "set_route", "set_route", "set_alias", "rollback", "retire",
    ]  # fmt: skip
    assert commits[0]["change"] == {"author": "ada", "message": "try it"}


def test_a_change_that_started_from_an_older_route_changes_nothing(ask: Asker, parlour: Parlour) -> None:
    ask.post("/v1/tasks/sst2:setRoute", {"route": {"shadows": [2]}})
    before = parlour.registry.state().generation
    response = ask("POST", "/v1/tasks/sst2:setRoute", {"version": 2, "seen": {}})
    assert (response.status_code, response.json()["reason"]) == (409, "ROUTE_CHANGED")
    assert parlour.registry.state().generation == before


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:{port}", "127.0.0.1:{port}", 200),
        ("http://localhost:{port}", "localhost:{port}", 200),
        ("https://elsewhere.example", "127.0.0.1:{port}", 403),
        ("null", "127.0.0.1:{port}", 403),
        ("http://rebound.example:{port}", "rebound.example:{port}", 403),
    ],
)
def test_a_page_of_another_site_cannot_change_the_registry(
    ask: Asker, parlour: Parlour, origin: str, host: str, status: int
) -> None:
    port = parlour.server.http_port
    headers = {"Origin": origin.format(port=port), "Host": host.format(port=port)}
    response = ask("POST", "/v1/tasks/sst2:setRoute", {"version": 2}, **headers)
    assert response.status_code == status, response.text
    if status == 403:
        assert response.json()["reason"] == "FOREIGN_PAGE"
    assert parlour.registry.state().task("sst2").serving == {"production": 2 if status == 200 else 1}


def test_a_version_says_where_it_came_from_and_shows_no_examples(ask: Asker) -> None:
    details = ask.get("/v1/tasks/sst2/versions/2")
    assert (details["provenance"], details["metric"], details["resident"]) == ({"run_id": "run-1"}, "accuracy", True)
    assert [file["name"] for file in details["files"]] == ["side_network.safetensors"]
    assert not details.keys() & {"examples", "thresholds"}
    assert ask("GET", "/v1/tasks/sst2/versions/two").json()["reason"] == "INVALID_INPUT"
    assert ask("GET", "/v1/tasks/sst2/versions/9").json()["reason"] == "UNKNOWN_VERSION"


def test_what_a_query_does_not_know_is_refused(ask: Asker) -> None:
    assert ask("GET", "/v1/history?limit=0").json()["fields"][0]["field"] == "limit"
    assert ask("GET", "/v1/history?tasks=sst2").json()["fields"][0]["field"] == "tasks"


def test_statistics_count_requests_and_their_times(ask: Asker) -> None:
    def counts() -> dict[str, Any]:
        answer = ask.get("/v1/statistics")
        assert answer["server"]["resident_side_networks"] >= 0
        return {f"{one['task']} {one['version']}": one for one in answer["versions"]}

    assert counts() == {}
    ask.post("/v1/tasks/sst2:predict", {"inputs": ["a", "b"]})
    ask("POST", "/v1/tasks/sst2:predict", {"inputs": [{"nothing": "a"}]})
    found = counts()
    assert (found["sst2 1"]["requests"], found["sst2 1"]["rows"]) == ({"OK": 1}, 2)
    assert sum(found["sst2 1"]["buckets"]) == 1
    assert found["sst2 None"]["requests"] == {"INVALID_ARGUMENT": 1}


def test_a_caller_is_told_what_it_may_do_and_sees_figures_of_its_tasks_alone(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    token = create_token(file, name="one", scopes=["predict:sst2"])
    access = AccessConfig(tokens=str(file), admin_port=0)
    with Parlour(tmp_path, [SST2, RTE], access=access, http_port=None).open() as parlour:
        ask = Asker(parlour)
        bearer = {"Authorization": f"Bearer {token}"}
        server = ask.get("/v1/server", **bearer)
        assert (server["asks_tokens"], server["takes_changes"]) == (True, False)
        assert server["caller"]["scopes"] == {"predict": ["sst2"], "read": ["sst2"], "publish": [], "admin": []}
        parlour.server.metrics.request("rte", 1, "OK", 0.1, 1)
        ask.post("/v1/tasks/sst2:predict", {"inputs": ["a"]}, **bearer)
        statistics = ask.get("/v1/statistics", **bearer)
        assert [one["task"] for one in statistics["versions"]] == ["sst2"]
        assert (statistics["server"], statistics["stages"]) == (None, None)
        refused = ask("POST", "/v1/tasks/sst2:setRoute", {"version": 1}, **bearer)
        assert (refused.status_code, refused.json()["reason"]) == (403, "NOT_THIS_PORT")
        assert ask("GET", "/v1/server").status_code == 401
        assert ask("GET", "/").status_code == 200
        ask.close()


def test_timings_are_told_to_who_asks(ask: Asker) -> None:
    body = {"inputs": ["a"]}
    assert "timings" not in ask.post("/v1/tasks/sst2:predict", body)
    assert ask.post("/v1/tasks/sst2:predict", body | {"timings": True})["timings"]["total_s"] > 0
    several = ask.post("/v1/predict", body | {"tasks": ["sst2"], "timings": True})
    assert several["timings"]["total_s"] > 0
    assert several["results"][0]["prediction"]["version"] == 1
