"""Routes over gRPC: setting, describing and comparing them, and that both services follow them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from protos import open_inference_pb2, open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.api.admin import AWAIT_POLL_S
from serving.client import errors as errors
from serving.client.client import Client
from serving.client.routes import Bounds, Route
from serving.rollout import comparison as comparing
from serving.server import Server
from side_registry import Registry, StoreFailed
from side_registry import route as stored
from side_registry.servers import Announced
from tests.serving.api_kit import SST2, TITLES, Parlour
from tests.sidecast.cli_kit import wait_until

KEYS = [f"caller {number}" for number in range(60)]
HALF = {2: 0.5}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Parlour]:
    """A server of its own, with three versions of one task; the first is production."""
    with Parlour(tmp_path, [SST2]).open() as parlour:
        for seed in (1, 2):
            parlour.publish(SST2, seed)
        yield parlour


@pytest.fixture
def client(opened: Parlour) -> Iterator[Client]:
    with Client(opened.address) as client:
        client.wait_served(3, timeout=5)
        yield client


@pytest.fixture
def stub(opened: Parlour) -> Iterator[Any]:
    with grpc.insecure_channel(opened.address) as channel:
        yield sidecast_pb2_grpc.AdminStub(channel)


def split(client: Client, **route: Any) -> int:
    """Set the route, and wait until the server follows it."""
    generation = client.set_route("sst2", **route).generation
    client.wait_served(generation, timeout=5)
    return generation


def test_every_call_that_returns_aliases_returns_their_routes(client: Client) -> None:
    bounds = {"error_rate": 0.01, "latency": 1.2, "disagreement": 0.05, "min_rows": 200}
    done = client.set_route("sst2", shares={2: 0.05}, shadows=[3], bounds=bounds, message="try it")
    route = Route(shares={2: 0.05}, shadows=(3,), bounds=Bounds(**bounds))
    assert (done.task, done.alias, done.version, done.route) == ("sst2", "production", 1, route)
    client.wait_served(done.generation, timeout=5)
    assert client.task("sst2").routes == client.tasks()[0].routes == {"production": route}
    assert client.task("sst2").aliases == {"production": 1}
    event = next(client.watch())
    assert (event.changed, event.routes) == ({"sst2": {"production": 1}}, {"sst2": {"production": route}})
    newest = client.history("sst2")[-1]
    assert (newest.message, newest.generation) == ("try it", done.generation)
    assert [(action.verb, action.alias, action.version, action.route) for action in newest.actions] == [
        ("set_route", "production", None, route)
    ]


def test_fields_missing_in_a_route_have_the_registrys_defaults(client: Client) -> None:
    assert client.set_route("sst2", shares={2: 0.0001}, bounds={"latency": 2}).route.bounds == Bounds(latency=2.0)
    assert client.set_route("sst2", shadows=[2, 3]).route == Route(shadows=(2, 3))
    assert client.set_route("sst2").route == Route()


def test_a_server_returns_at_once_what_was_changed_through_it(client: Client) -> None:
    for share in ("1%", "1.01%", "1.02%"):
        client.set_route("sst2", shares={2: share})
        assert client.task("sst2").routes["production"].shares == {2: float(share[:-1]) / 100}
    client.promote("sst2", 2)
    assert (client.task("sst2").aliases, client.task("sst2").routes) == ({"production": 2}, {})


def test_a_rollback_ends_a_canary_first(client: Client) -> None:
    client.promote("sst2", 2)
    client.set_route("sst2", shares={3: "1%", 1: 0.005})
    ended = client.rollback("sst2")
    assert (ended.version_from, ended.version_to) == (3, 2)
    assert ended.canary_ended
    with pytest.raises(errors.RollbackUnclearError, match="say where to: --to 1"):
        client.rollback("sst2")
    again = client.rollback("sst2", to=1)
    assert (again.version_from, again.version_to, again.canary_ended) == (2, 1, False)


def test_a_route_based_on_an_outdated_one_is_refused(client: Client) -> None:
    judged = Route(shares={2: 0.05}, shadows=(3,), bounds=Bounds(disagreement=0.05))
    bounds = {"disagreement": 0.05, "min_rows": 100}
    assert client.set_route("sst2", shares={2: 0.05}, shadows=[3], bounds=bounds, seen=Route()).route == judged
    grown = client.set_route("sst2", shares={2: 0.09}, shadows=[3], bounds=bounds, seen=judged)
    assert grown.route.shares == {2: 0.09}
    for seen in (judged, Route()):
        with pytest.raises(errors.RouteChangedError, match="look at it again"):
            client.set_route("sst2", shares={2: 0.25}, seen=seen)
    assert client.task("sst2").routes == {"production": grown.route}


def test_requests_of_one_key_get_one_version_from_both_services(opened: Parlour, client: Client) -> None:
    split(client, shares=HALF)
    expected = [opened.pool.resolve("sst2", key=key).version for key in KEYS]
    assert set(expected) == {1, 2}
    assert [client.predict("sst2", ["a"], route_key=key).version for key in KEYS] == expected
    assert [client.predict_tasks(["sst2"], ["a"], route_key=key)["sst2"].version for key in KEYS] == expected  # type: ignore
    with grpc.insecure_channel(opened.address) as channel:
        tensors = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = [tensors.ModelInfer(infer(key)) for key in KEYS]
        streamed = list(tensors.ModelStreamInfer(map(infer, KEYS)))
    assert [int(item.model_version) for item in found] == expected
    by_id = {response.infer_response.id: int(response.infer_response.model_version) for response in streamed}
    assert [by_id[key] for key in KEYS] == expected


def infer(key: str) -> open_inference_pb2.ModelInferRequest:
    request = open_inference_pb2.ModelInferRequest(model_name="sst2", id=key)
    request.parameters["route_key"].string_param = key
    tensor = request.inputs.add(name="sentence", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"a")
    return request


def test_streams_follow_a_key_too(tmp_path: Path) -> None:
    with Parlour(tmp_path, [TITLES]).open() as parlour, Client(parlour.address) as client:
        parlour.publish(TITLES, 1)
        client.wait_served(client.set_route("titles", shares=HALF).generation, timeout=5)
        expected = [parlour.pool.resolve("titles", key=key).version for key in KEYS[:12]]
        assert set(expected) == {1, 2}
        assert [client.stream("titles", "a", route_key=key).result().version for key in KEYS[:12]] == expected


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"shares": {9: 0.01}}, errors.UnknownVersionError, "has no version 9"),
    ({"shares": {1: 0.01}}, errors.InvalidRouteError, "version 1 is its main version"),
    ({"shares": {2: 1.0}}, errors.InvalidInputError, "route.shares.2: a share is 0.01% to 99.99%"),
    ({"shares": {2: 0}}, errors.InvalidInputError, "route.shares.2: a share is 0.01% to 99.99%"),
    ({"shares": {2: 500}}, errors.InvalidInputError, "500 has no unit: write a percentage with its sign (5%), or"),
    ({"shares": {2: 0.6, 3: 0.4}}, errors.InvalidRouteError, "must leave something to the alias's main version"),
    ({"shares": {2: 0.01}, "shadows": [2]}, errors.InvalidRouteError, "must be named once, and have no share"),
    ({"shadows": [2], "bounds": {"latency": 2}}, errors.InvalidRouteError, "bounds are for versions with a share"),
    ({"shares": {2: 0.01}, "bounds": {"latency": 0.5}}, errors.InvalidRouteError, "bounds.latency"),
    ({"shares": {2: 0.01}, "bounds": {"error_rate": float("nan")}}, errors.InvalidInputError, "bounds.error_rate"),
    ({"shares": {2: 0.01}, "bounds": {"errors": 1}}, errors.InvalidInputError, "bounds.errors: is no bound; use"),
    ({"shares": {2: 0.01}, "bounds": {"latency": "x"}}, errors.InvalidInputError, "bounds.latency: cannot be 'x'"),
    ({"shares": {2: 0.01}, "bounds": {"disagreement": 5}}, errors.InvalidInputError, "5 has no unit: write a perc"),
    ({"shares": [2]}, errors.InvalidInputError, "route.shares: must be shares by version"),
    ({"shares": {"2": 0.5}}, errors.InvalidInputError, "route: must have shares by version"),
    ({"shares": {2: 0.5}, "bounds": [1]}, errors.InvalidInputError, "route.bounds: must be bounds by name"),
    ({"shadows": "2"}, errors.InvalidInputError, "shadows: must be a list"),
    ({"version": 9}, errors.UnknownVersionError, "has no version 9"),
    ({"version": "2"}, errors.InvalidInputError, "route.version: cannot be '2'"),
    ({"alias": "canary", "shares": {2: 0.01}}, errors.UnknownAliasError, "has no alias 'canary'"),
    ({"alias": "7", "shares": {2: 0.01}}, errors.InvalidNameError, "'7' is no valid alias"),
]


def test_an_invalid_route_is_refused(opened: Parlour, client: Client) -> None:
    for route, error, says in REFUSED:
        with pytest.raises(error) as caught:
            client.set_route("sst2", **route)
        assert says in str(caught.value), route
    assert opened.registry.state().generation == 3


def test_messages_that_no_client_sends_are_refused(stub: Any) -> None:
    twice = [pb.Route.Share(version=2, share=100), pb.Route.Share(version=2, share=200)]
    for request, says in (
        (pb.SetRouteRequest(task="sst2"), "route: is missing"),
        (pb.SetRouteRequest(task="sst2", route=pb.Route(shares=twice)), "route.shares: must name each version once"),
        (pb.SetRouteRequest(task="nope", route=pb.Route(version=1)), "there is no task 'nope'"),
        (pb.SetRouteRequest(task="sst2", route=pb.Route(version=0)), "has no version 0"),
    ):
        with pytest.raises(grpc.RpcError, match=says):
            stub.SetRoute(request)


# --- comparisons


def test_comparisons_include_the_newest_disagreements(tmp_path: Path) -> None:
    main = comparing.Comparison(version=1, rows=4, latency_seconds=0.25)
    numbers: dict[str, Any] = {"rows": 9, "failed": 1, "compared": 8, "agreed": 6, "drift": 0.125, "dropped": 7}
    numbers |= {"latency_seconds": 0.5, "cost_seconds": 0.0625}
    shadow = comparing.Comparison(version=3, answers=False, **numbers)
    differing = [
        comparing.Disagreement(time=at, version=3, prompt=f"at {at}", expected="a", found="b", drift=0.5)
        for at in (1e9 + 0.5, 1e9)
    ]
    compared = comparing.Compared(
        task="sst2",
        alias="production",
        version=1,
        comparisons=(main, shadow),
        disagreements=tuple(differing),
        since=4,
        keeps_inputs=True,
    )
    bounds = stored.Bounds(error_rate=0.5)
    routed = comparing.Routed(1, stored.Route(shares={3: 500}, bounds=bounds), 2)
    ended = comparing.RolledBack(
        why="it differs",
        generation=3,
        time=1e9,
        routed=routed,
        comparisons=(main,),
        disagreements=tuple(differing),
    )
    comparisons = cast(
        Any,
        SimpleNamespace(
            read=lambda *name: {("sst2", "production"): compared}[name],
            rolled_back=lambda *name: {("sst2", "production"): ended}[name],
        ),
    )
    parlour = Parlour(tmp_path, [SST2])
    assemble = parlour.assemble
    parlour.assemble = lambda *parts: replace(assemble(*parts), comparisons=comparisons)  # type: ignore[method-assign]
    with parlour.open(), Client(parlour.address) as client:
        found = client.comparison("sst2", disagreements=1)
        assert (found.task, found.alias, found.version, found.since) == ("sst2", "production", 1, 4)
        for comparison, known in zip(found.versions, (main, shadow), strict=True):
            assert asdict(comparison) == {name: getattr(known, name) for name in asdict(comparison)}
        [newest] = found.disagreements
        assert (newest.prompt, newest.expected, newest.found, found.keeps_inputs) == (
            differing[0].prompt,
            "a",
            "b",
            True,
        )
        assert newest.time == datetime.fromtimestamp(1e9 + 0.5, UTC)
        before = found.rolled_back
        assert before is not None
        assert (before.why, before.generation, before.version) == ("it differs", 3, 1)
        assert before.time == datetime.fromtimestamp(1e9, UTC)
        assert before.route == Route(shares={3: 0.05}, bounds=Bounds(error_rate=0.5, min_rows=100))
        assert ([each.rows for each in before.versions], len(before.disagreements)) == ([4], 1)
        assert client.comparison("sst2").disagreements == ()


def test_an_alias_without_a_route_has_no_comparisons(client: Client) -> None:
    found = client.comparison("sst2")
    assert (found.version, found.versions, found.since) == (1, (), 0)
    with pytest.raises(errors.UnknownTaskError):
        client.comparison("nope")
    with pytest.raises(errors.UnknownAliasError):
        client.comparison("sst2", alias="canary")
    with pytest.raises(errors.InvalidInputError, match="disagreements: must be at least 0"):
        client.comparison("sst2", disagreements=-1)


# --- waiting for servers


def test_a_change_is_visible_on_every_server_after_waiting_for_it(tmp_path: Path) -> None:
    with (
        Parlour(tmp_path, [SST2]).open() as one,
        Parlour(tmp_path, []).open() as other,
        Client(one.address) as here,
        Client(other.address) as there,
    ):
        for seed in range(1, 6):
            done = (here, there)[seed % 2].publish(one.run(SST2, seed), alias="production")
            awaited = here.await_generation(done.generation, timeout=10)
            assert (awaited.served, awaited.generation, awaited.late) == (True, done.generation, ())
            assert {server.address for server in awaited.servers} == {one.address, other.address}
            assert [client.predict("sst2", ["a"]).version for client in (here, there)] == [done.version] * 2


def test_the_first_answer_includes_commits_made_while_the_server_loaded(tmp_path: Path) -> None:
    """No writer waited for the server then: it was not announced yet."""
    parlour = Parlour(tmp_path, [SST2])
    parlour.config = replace(parlour.config, load=replace(parlour.config.load, poll_s=60.0))
    assemble = parlour.assemble

    def slowly(*parts: Any) -> Any:
        assembled = assemble(*parts)
        elsewhere = Registry.open(tmp_path / "registry")
        elsewhere.publish(parlour.run(SST2, 1), alias="production")
        assert elsewhere.servers() == []
        return assembled

    parlour.assemble = slowly  # type: ignore[method-assign]
    with parlour.open(), Client(parlour.address) as client:
        assert client.predict("sst2", ["a"]).version == 2


def test_a_read_only_registry_without_presence_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise StoreFailed("memory", "servers/x.json", "read-only")

    monkeypatch.setattr(Registry, "announce", refuse)
    monkeypatch.setattr(Registry, "withdraw", refuse)
    with Parlour(tmp_path, [SST2]).open() as parlour, Client(parlour.address) as client:
        assert client.predict("sst2", ["a"]).version == 1
        assert client.await_generation(client.publish(parlour.run(SST2, 1)).generation, timeout=5).served
    assert [record.message for record in caplog.records if "presence" in record.message] == [
        "the registry does not take this server's presence, so no writer waits for it: "
        "the registry's store memory failed at 'servers/x.json': read-only; check access to it and try again"
    ]


def test_a_server_that_does_not_follow_is_named(opened: Parlour, client: Client) -> None:
    opened.registry.announce(Announced(id="stuck", address="10.0.0.9:8001", generation=1, counter=0))
    found = client.await_generation(timeout=0)
    assert (found.generation, found.served) == (3, False)
    assert [(server.id, server.address, server.generation) for server in found.late] == [("stuck", "10.0.0.9:8001", 1)]
    assert found.late[0].seen is not None
    waiting = threading.Timer(0.2, lambda: opened.registry.withdraw("stuck"))
    waiting.start()
    assert client.await_generation(3, timeout=5).served
    waiting.join()


def test_without_presence_in_the_registry_a_server_waits_for_itself(opened: Parlour, client: Client) -> None:
    opened.registry.withdraw(cast(Any, opened.server)._presence.id)
    assert [server.address for server in client.await_generation(3, timeout=5).servers] == [opened.address]
    late = client.await_generation(9, timeout=0.2)
    assert (late.served, [server.address for server in late.late]) == (False, [opened.address])


def test_all_waiting_calls_share_one_poll_of_the_registry(opened: Parlour, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, look = [], opened.registry.servers

    def counted() -> list[Announced]:
        looks.append(1)
        return look()

    monkeypatch.setattr(opened.registry, "servers", counted)

    def wait(_: int) -> bool:
        with Client(opened.address) as client:
            return client.await_generation(9, timeout=0.6).served

    began = time.monotonic()
    with ThreadPoolExecutor(16) as threads:
        assert not any(threads.map(wait, range(16)))
    most = (time.monotonic() - began) / AWAIT_POLL_S + 2  # one look a pause, for all 16 together
    assert 1 <= len(looks) <= most


def test_a_generation_that_does_not_exist_cannot_be_waited_for(client: Client) -> None:
    for generation, timeout, says in ((-1, 1, "generation: must be"), (1, 301, "within 0..300 s"), (1, -1, "0..300 s")):
        with pytest.raises(errors.InvalidInputError, match=says):
            client.await_generation(generation, timeout=timeout)


def test_a_draining_server_ends_waiting_calls(opened: Parlour) -> None:
    found: list[Exception] = []

    def wait() -> None:
        with Client(opened.address, retry=False) as client:
            try:
                client.await_generation(9, timeout=60)
            except errors.SidecastError as error:
                found.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: cast(Server, opened.server).drain.in_flight > 0)
    assert opened.stop(20).result(20)
    waiting.join(20)
    assert [type(error) for error in found] == [errors.DrainingError]
    assert opened.registry.servers() == []
