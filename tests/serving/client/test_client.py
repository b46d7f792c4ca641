"""The clients: both answer the same, with typed results and errors, and need no torch."""

import asyncio
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from ladder.decoding.settings import Generation
from serving.client import errors as errors
from serving.client import requests as client_calls
from serving.client.aio import AsyncClient
from serving.client.arguments import LONGEST_TIMEOUT_S, parse_ref
from serving.client.client import Client
from serving.client.errors import SidecastError
from serving.client.results import Classification, Predictions, Prompt, Regression, Row, Text
from serving.client.routes import Bounds, Route
from serving.client.shares import rate_of, share_of
from serving.config import RequestConfig
from serving.errors import Overloaded
from tests.serving.api_kit import RTE, SST2, TITLES, TWEETS, Parlour, rule

Ask = Callable[..., Any]


@dataclass(frozen=True)
class FailedCall:
    """As gRPC raises it, without details of ours."""

    status: grpc.StatusCode
    text: str

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str:
        return self.text

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, parlour: Parlour) -> Ask:
    """Calls a client's method by name; the async one on an event loop of its own."""
    if request.param == "sync":

        def call(method: str, *arguments: Any, **named: Any) -> Any:
            with Client(parlour.address) as client:
                return getattr(client, method)(*arguments, **named)

        return call

    async def ask_async(method: str, *arguments: Any, **named: Any) -> Any:
        async with AsyncClient(parlour.address) as client:
            return await getattr(client, method)(*arguments, **named)

    return lambda *arguments, **named: asyncio.run(ask_async(*arguments, **named))


def test_answers_are_typed_and_ordered(ask: Ask) -> None:
    found = ask("predict", "sst2", ["short", "x" * 80])
    assert isinstance(found, Predictions)
    assert (found.task, found.version, found.generation, found.alias) == ("sst2", 1, 4, "production")
    assert len(found) == 2
    expected: Any = rule(SST2, "short")
    assert found[0] == Classification("negative", expected.score, dict(zip(SST2.labels, expected.scores, strict=True)))
    assert [answer.label for answer in found] == ["negative", "positive"]  # type: ignore[union-attr]
    assert found[1:] == found.answers[1:]
    value = ask("predict", "tweets", ["a"])[0]
    assert value == Regression(rule(TWEETS, "rate: a").value)  # type: ignore[union-attr]
    assert ask("predict", "titles", ["a"])[0] == Text("TITLE: A")


def test_answers_say_whether_their_text_was_cut(ask: Ask) -> None:
    long = "x" * 200
    for task in ("sst2", "tweets", "titles"):
        assert [answer.truncated for answer in ask("predict", task, ["a", long])] == [False, True]


def test_a_row_is_a_text_or_fields_or_a_prompt(ask: Ask) -> None:
    found = ask("predict", "titles", ["a", {"body": "b"}, Prompt("c")])
    assert [answer.text for answer in found] == ["TITLE: A", "TITLE: B", "C"]
    pair = ask("predict", "rte", [{"sentence1": "a", "sentence2": "b"}])[0]
    assert list(pair.scores) == list(RTE.labels)


@pytest.mark.parametrize(
    ("task", "how"),
    [("sst2@production", {}), ("sst2", {"alias": "production"}), ("sst2:1", {}), ("sst2", {"version": 1})],
)
def test_versions_and_aliases_are_named_either_way(ask: Ask, task: str, how: dict[str, Any]) -> None:
    found = ask("predict", task, ["a"], **how)
    assert (found.version, found.alias) == (1, None if "1" in task or "version" in how else "production")


def test_many_tasks_each_with_its_own_answer_or_error(ask: Ask) -> None:
    found = ask("predict_tasks", ["sst2", "titles:1", "nope", "sst2@canary"], ["a", "b"])
    assert list(found) == ["sst2", "titles:1", "nope", "sst2@canary"]
    assert [answer.label for answer in found["sst2"]] == ["negative", "negative"]
    assert found["titles:1"].version == 1
    assert isinstance(found["nope"], errors.UnknownTaskError)
    assert isinstance(found["sst2@canary"], errors.UnknownAliasError)


def test_tasks_describe_themselves(ask: Ask) -> None:
    found = ask("task", "tweets")
    assert (found.spec.kind, found.spec.low, found.spec.high, found.spec.labels) == ("regression", -4, 4, ())
    assert found.serving == found.aliases == {"production": 1}
    assert [each.task for each in ask("tasks")] == ["rte", "sst2", "titles", "tweets"]
    spec = ask("task", "titles").spec
    assert (spec.max_chars, spec.low, spec.high) == (TITLES.max_chars, None, None)
    assert [commit.generation for commit in ask("history", limit=2)] == [3, 4]
    assert ask("wait_served", 4).served == 4


def test_a_version_and_an_alias_tell_their_own_spec(tmp_path: Path) -> None:
    other = SST2.model_copy(update={"labels": ("bad", "good")})
    with Parlour(tmp_path, specs=[SST2]).open() as parlour, Client(parlour.address) as client:
        version = parlour.publish(other, seed=9)
        client.wait_served(parlour.registry.set_alias("sst2", "canary", version))
        specs = [client.task(name).spec for name in ("sst2", f"sst2:{version}", "sst2@canary")]
        assert [spec.labels for spec in specs if spec] == [SST2.labels, other.labels, other.labels]
        with pytest.raises(errors.UnknownVersionError):
            client.task("sst2:99")
        with pytest.raises(errors.UnknownAliasError):
            client.task("sst2@shadow")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("sst3", ["a"]), errors.UnknownTaskError, "did you mean 'sst2'"),
        (("sst2:7", ["a"]), errors.UnknownVersionError, "no version 7"),
        (("sst2@x", ["a"]), errors.UnknownAliasError, "its aliases: production"),
        (("sst2:x", ["a"]), errors.InvalidNameError, "TASK:version"),
        (("sst2@", ["a"]), errors.InvalidNameError, "alias after the @"),
        (("sst2", []), errors.InvalidInputError, "rows"),
        (("sst2", "a gripping film"), errors.InvalidInputError, "rows: must be a list, got one str"),
        (("sst2", [7]), errors.InvalidInputError, "rows[0]: must be a text"),
        (("sst2", ["a", "\ud800"]), errors.InvalidInputError, "rows[1]: cannot be sent as text"),
        (("rte", [{"sentence1": 7}]), errors.InvalidInputError, "rows[0].sentence1: must be a text, or an image"),
        (("rte", [{"sentence1": "a"}]), errors.InvalidInputError, "rows[0].sentence2: is missing"),
        (("rte", [{"sentence1": "a", "sentence2": "b"}] * 6), errors.TooManyRowsError, "the limit is 5"),
        (("titles", ["x" * 301]), errors.InvalidInputError, "301 characters"),
    ],
)
def test_errors_are_typed_exceptions(ask: Ask, arguments: Any, error: type[SidecastError], says: str) -> None:
    with pytest.raises(error) as caught:
        ask("predict", *arguments)
    assert says in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), copy.fields) == (error, str(caught.value), caught.value.fields)


def test_a_call_chooses_how_texts_are_made(ask: Ask, parlour: Parlour) -> None:
    how = {"num_beams": 3, "early_stopping": True, "max_new_tokens": 5, "seed": None}
    assert ask("predict", "titles", ["a"], decoding=how)[0] == Text("TITLE: A")
    answerer = parlour.service.answerers[-1]
    assert answerer.max_new_tokens == 5
    assert answerer.generation == Generation(num_beams=3, early_stopping=True)


def test_settings_of_texts_may_come_by_their_old_name(ask: Ask, parlour: Parlour) -> None:
    with pytest.warns(DeprecationWarning, match="`generation` is now `decoding`") as told:
        ask("predict", "titles", ["a"], generation={"max_new_tokens": 5})
    assert parlour.service.answerers[-1].max_new_tokens == 5
    assert told[0].filename == __file__
    with (
        pytest.warns(DeprecationWarning, match="decoding"),
        pytest.raises(errors.InvalidInputError, match="generation is its old name"),
    ):
        ask("predict_tasks", ["titles"], ["a"], decoding={}, generation={})


def test_calls_about_one_row_name_it_so_that_a_load_balancer_may_keep_it_at_one_server() -> None:
    def metadata(rows: list[Row], task: str = "sst2") -> object:
        return client_calls.predict(task, rows, None, None, None, None, 0, "").metadata

    one = metadata(["a film"])
    assert one == metadata(["a film"], "rte")
    assert one != metadata(["another"])
    assert metadata([{"a": "1", "b": "2"}]) == metadata([{"b": "2", "a": "1"}])
    assert metadata(["a film"] * 2) == ()
    assert client_calls.stream("titles", "a film", None, None, None, None, 0, "").metadata == one
    assert client_calls.predict_tasks(["sst2", "rte"], ["a film"], None, None, 0, "").metadata == one


def test_what_names_a_row_is_sent(tmp_path: Path) -> None:
    tenants = RequestConfig(tenant_header=client_calls.AFFINITY)
    with Parlour(tmp_path, request=tenants).open() as parlour, Client(parlour.address) as client:
        client.predict("sst2", ["a film"])
        client.predict("sst2", ["a film", "another"])
        [(_, expected)] = client_calls.predict("sst2", ["a film"], None, None, None, None, 0, "").metadata
        assert parlour.service.tenants == [expected, ""]


def test_a_call_names_its_route_key(ask: Ask, parlour: Parlour) -> None:
    ask("predict", "sst2", ["a"], route_key="user 7")
    ask("predict_tasks", ["sst2", "titles"], ["a"], route_key="user 8")
    assert parlour.service.route_keys[-3:] == ["user 7", "user 8", "user 8"]
    with pytest.raises(errors.InvalidInputError, match="route_key: cannot be 7"):
        ask("predict", "sst2", ["a"], route_key=7)


def test_servers_are_awaited_and_versions_compared(ask: Ask, parlour: Parlour) -> None:
    awaited = ask("await_generation", timeout=5)
    assert (awaited.generation, awaited.served, awaited.late) == (4, True, ())
    assert [server.address for server in awaited.servers] == [parlour.address]
    compared = ask("comparison", "sst2", disagreements=3)
    assert (compared.alias, compared.version, compared.versions) == ("production", 1, ())
    assert pickle.loads(pickle.dumps((awaited, compared))) == (awaited, compared)


async def test_both_clients_set_routes_alike(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2]).open() as parlour:
        parlour.publish(SST2, 1)
        async with AsyncClient(parlour.address) as client:
            done = await client.set_route("sst2", shares={2: 0.01}, bounds={"latency": 2})
            event = await client.wait_served(done.generation)
        assert event.routes["sst2"]["production"] == done.route
        with Client(parlour.address) as other:
            assert other.set_route("sst2", shares={2: 0.01}, bounds={"latency": 2}) == done
            assert other.task("sst2").routes == {"production": done.route}
            assert pickle.loads(pickle.dumps(done)) == done


@pytest.mark.parametrize(
    ("generation", "says"),
    [
        ({"beams": 3}, "generation.beams: is no setting; use num_beams, do_sample"),
        ({"num_beams": 2.5}, "generation.num_beams: cannot be 2.5"),
        ({"num_beams": 99}, "generation.num_beams: Input should be less than or equal to 16"),
        ({"top_k": 3}, "generation.top_k: is for sampling"),
    ],
)
def test_wrong_settings_of_texts_are_named(ask: Ask, generation: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.InvalidInputError) as caught:
        ask("predict", "titles", ["a"], decoding=generation)
    assert says in str(caught.value)


NESTED: list[Any] = []
for _ in range(50_000):
    NESTED = [NESTED]

BAD_ARGUMENTS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("predict", ("sst2", ["a"]), {"timeout": float("inf")}, "timeout: must be at most 1000000000 seconds, or None"),
    ("predict", ("sst2", ["a"]), {"timeout": float("nan")}, "timeout: must be at most"),
    ("predict", ("sst2", ["a"]), {"timeout": 1e12}, "timeout: must be at most"),
    ("predict", ("sst2", ["a"]), {"timeout": "5"}, "timeout: must be a number of seconds"),
    ("predict_tasks", (["sst2"], ["a"]), {"timeout": 10**400}, "timeout: must be at most"),
    ("await_generation", (), {"timeout": float("inf")}, "timeout: must be at most"),
    ("wait_served", (1,), {"timeout": float("nan")}, "timeout: must be at most"),
    ("ready", (float("inf"),), {}, "wait_s: must be at most"),
    ("predict", ("\ud800", ["a"]), {}, "task: cannot be '\\ud800'"),
    ("predict", ("sst2@\ud800", ["a"]), {}, "alias: cannot be '\\ud800'"),
    ("predict", (7, ["a"]), {}, "task: must be a text"),
    ("predict", ("sst2", None), {}, "rows: must be a list, got one NoneType"),
    ("predict", ("titles", ["a"]), {"decoding": {"\ud800": 1}}, "generation.'\\ud800': is no setting"),
    ("predict", ("sst2", ["a"]), {"version": 2**70}, "version: cannot be 1180591620717411303424"),
    ("predict", ("sst2", ["a"]), {"route_key": "\ud800"}, "route_key: cannot be"),
    ("predict", ("sst2", [{"sentence": "\ud800"}]), {}, "rows[0]: cannot be sent as text"),
    ("predict", ("titles", ["a"]), {"decoding": {"num_beams": NESTED}}, "num_beams: cannot be a value of type list"),
    ("predict", ("titles", ["a"]), {"decoding": {"seed": 10**5000}}, "seed: cannot be a value of type int"),
    ("predict", ("titles", ["a"]), {"decoding": ["num_beams"]}, "decoding: must be settings by name"),
    ("history", ("\ud800",), {}, "task: cannot be"),
    ("history", (), {"limit": 2**70}, "limit: cannot be"),
    ("promote", ("sst2", 2**70), {}, "version: cannot be"),
    ("promote", ("sst2", 1), {"message": "\ud800"}, "message: cannot be"),
    ("rollback", ("sst2",), {"alias": "\ud800"}, "alias: cannot be"),
    ("retire", ("sst2", "1"), {}, "version: cannot be '1'"),
    ("comparison", ("sst2",), {"disagreements": 2**70}, "disagreements: cannot be"),
    ("set_route", ("sst2",), {"shares": {2**70: 0.5}}, "route: must have shares by version"),
    ("set_route", ("sst2",), {"shares": {2: 10**400}}, "route.shares.2: a share is"),
]


@pytest.mark.parametrize(("method", "arguments", "named", "says"), BAD_ARGUMENTS)
def test_what_no_server_would_take_is_the_clients_own_error(
    ask: Ask, method: str, arguments: tuple[Any, ...], named: dict[str, Any], says: str
) -> None:
    with pytest.raises(errors.InvalidInputError) as caught:
        ask(method, *arguments, **named)
    assert says in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("timeout", value) for value in (float("inf"), float("nan"), 1e12, "60")),
        *(("max_message_bytes", value) for value in (2**31, 1e6, -2)),
        *(("address", value) for value in ("\ud800:8001", 8001, None)),
    ],
)
def test_a_clients_own_settings_are_checked_when_it_is_made(name: str, value: Any) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(errors.InvalidInputError, match=f"{name}: must be"):
            kind(**{"address": "localhost", name: value})


def test_the_longest_timeout_is_one_that_works(ask: Ask) -> None:
    assert ask("predict", "sst2", ["a"], timeout=LONGEST_TIMEOUT_S).version == 1


@pytest.mark.parametrize("manifest", ['{"files": ' + "[" * 100_000, '{"files": {"\\ud800": {}}}', '{"files": 7}', "[]"])
def test_a_run_with_a_bad_manifest_is_an_invalid_artifact(ask: Ask, tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(errors.InvalidArtifactError, match="is not a finished run") as caught:
        ask("publish", tmp_path)
    str(caught.value).encode()


def test_only_one_of_version_and_alias(ask: Ask) -> None:
    for task, how in (("sst2:1", {"version": 1}), ("sst2", {"version": 1, "alias": "x"}), ("sst2@x", {"version": 1})):
        with pytest.raises(errors.InvalidInputError, match="one version or one alias"):
            ask("predict", task, ["a"], **how)


def test_a_reference_is_split_once() -> None:
    assert parse_ref("a@b:1").alias == "b:1"
    assert parse_ref("a").WhichOneof("which") is None


def test_a_timeout_passes(ask: Ask, parlour: Parlour) -> None:
    parlour.service.slow = 30.0
    try:
        with pytest.raises(errors.DeadlineExceededError):
            ask("predict", "sst2", ["a"], timeout=0.1)
    finally:
        parlour.service.slow = 0.0


def test_a_rejected_call_has_a_retry_delay(ask: Ask, parlour: Parlour) -> None:
    parlour.service.trouble["sst2"] = Overloaded(9, 8, 0.5)
    try:
        with pytest.raises(errors.OverloadedError) as caught:
            ask("predict", "sst2", ["a"])
    finally:
        parlour.service.trouble.clear()
    assert caught.value.retry_after_s == 0.5
    assert caught.value.fields == {"queued": "9", "limit": "8", "what": "rows", "retry_after_s": "0.5"}


def test_ready_tells_and_waits(ask: Ask) -> None:
    assert ask("ready") is True
    with Client("127.0.0.1:1") as ignore_started:
        assert ignore_started.ready(0.2) is False


def test_nobody_there_is_an_error_that_names_the_address() -> None:
    expected = r"no answer from 127\.0\.0\.1:1: no server listens there"
    with Client("127.0.0.1:1", retry=False) as client, pytest.raises(errors.UnreachableError, match=expected):
        client.predict("sst2", ["a"])


def test_an_address_of_http_is_told_from_one_of_grpc() -> None:
    with pytest.raises(errors.InvalidInputError, match="HOST:PORT of the gRPC port"):
        Client("http://127.0.0.1:8000")
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        for secured, cause in ((False, "does not speak gRPC"), (True, "has no TLS")):
            client = Client(f"127.0.0.1:{server.server_port}", retry=False, tls=secured)
            with client, pytest.raises(errors.UnreachableError, match=cause):
                client.predict("sst2", ["a"])
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (grpc.StatusCode.UNKNOWN, "Received http2 header with status: 500"),
        (grpc.StatusCode.NOT_FOUND, "Not set. Ping /ray.serve.RayServeAPIService/ListApplications for available ones."),
    ],
)
def test_a_proxy_with_nobody_behind_it_is_as_nobody_there(code: grpc.StatusCode, says: str) -> None:
    found = errors.from_call(FailedCall(code, says), "here:8001")
    assert isinstance(found, errors.UnreachableError)
    assert "here:8001" in str(found)


def test_a_class_that_a_user_derives_is_not_raised_for_a_status() -> None:
    class Mine(errors.UnknownTaskError):
        pass

    assert Mine not in errors.BY_REASON.values()
    assert errors.BY_REASON["UNKNOWN_TASK"] is errors.UnknownTaskError


def test_what_a_server_did_not_foresee_stays_as_it_is() -> None:
    other = FailedCall(grpc.StatusCode.UNKNOWN, "Unexpected <class 'ValueError'>")
    assert type(errors.from_call(other, "here:8001")) is SidecastError


@contextmanager
def losing(code: grpc.StatusCode, times: int) -> Iterator[tuple[Client, list[str]]]:
    """A client of a server whose first answers are lost, and the methods that were called."""
    called: list[str] = []

    def handler(method: str) -> grpc.RpcMethodHandler:
        def answer(request: object, context: grpc.ServicerContext) -> bytes:
            called.append(method)
            if len(called) <= times:
                context.abort(code, "lost")
            return b""

        make = grpc.stream_unary_rpc_method_handler if method == "Publish" else grpc.unary_unary_rpc_method_handler
        return make(answer)

    methods = {name: handler(name) for name in ("ListTasks", "Retire", "SetRoute", "Rollback", "Publish")}
    server = grpc.server(ThreadPoolExecutor(1), [grpc.method_handlers_generic_handler("sidecast.v1.Admin", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            yield client, called
    finally:
        server.stop(0).wait()


LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)


@pytest.mark.parametrize("code", LOST)
def test_what_a_lost_replica_ends_is_asked_again(code: grpc.StatusCode) -> None:
    with losing(code, times=2) as (client, called):
        assert client.tasks() == []
    assert called == ["ListTasks"] * 3


def test_a_retirement_may_be_done_twice() -> None:
    with losing(grpc.StatusCode.UNAVAILABLE, times=1) as (client, called):
        client.retire("sst2", 1)
    assert called == ["Retire"] * 2


@pytest.mark.parametrize("code", LOST)
@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("SetRoute", lambda client, run: client.promote("sst2", 2)),
        ("SetRoute", lambda client, run: client.set_route("sst2", shares={2: 0.01})),
        ("Rollback", lambda client, run: client.rollback("sst2")),
        ("Publish", lambda client, run: client.publish(run)),
    ],
)
def test_a_change_that_may_have_been_made_is_not_made_again(
    tmp_path: Path, code: grpc.StatusCode, method: str, change: Callable[[Client, Path], object]
) -> None:
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    with losing(code, times=1) as (client, called), pytest.raises(SidecastError, match="lost"):
        change(client, tmp_path)
    assert called == [method]


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(
    parlour: Parlour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(parlour.address, retry=False) as client:
        assert len(client.predict("sst2", ["a gripping film"])) == 1


def test_a_server_that_is_no_sidecast_is_unsupported(parlour: Parlour) -> None:
    with Client(f"127.0.0.1:{parlour.server.metrics_port}", retry=False) as client, pytest.raises(SidecastError):
        client.predict("sst2", ["a"], timeout=2)


def test_a_call_is_retried_until_the_server_is_there(tmp_path: Path) -> None:
    with Parlour(tmp_path).open() as before:
        port = before.server.port
    parlour, up = Parlour(tmp_path, [], port=port), threading.Event()

    def serve() -> None:
        time.sleep(0.15)
        with parlour.open():
            up.wait(20)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            assert client.predict("sst2", ["a"]).version == 1
    finally:
        up.set()
        thread.join()


def test_a_message_that_is_too_large_says_what_to_do(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2], max_message_bytes=10_000).open() as parlour, Client(parlour.address) as client:
        with pytest.raises(errors.MessageTooLargeError, match="send fewer rows"):
            client.predict("sst2", ["x" * 11_000])
        assert client.predict("sst2", ["x" * 9_000]).version == 1


def test_clients_and_results_pickle(parlour: Parlour) -> None:
    with Client(parlour.address, timeout=7) as client, pickle.loads(pickle.dumps(client)) as copy:
        found = copy.predict("sst2", ["a"])
        assert found == client.predict("sst2", ["a"])
        assert pickle.loads(pickle.dumps(found)) == found
        assert pickle.loads(pickle.dumps(client.task("sst2"))) == client.task("sst2")
        assert repr(copy) == repr(client)
    again = pickle.loads(pickle.dumps(AsyncClient(parlour.address)))
    assert asyncio.run(again.ready())


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("localhost", "localhost:8001"),
        ("10.0.0.1:50051", "10.0.0.1:50051"),
        ("::1", "[::1]:8001"),
        ("[::1]", "[::1]:8001"),
        ("[::1]:50051", "[::1]:50051"),
        ("2001:db8::8001", "[2001:db8::8001]:8001"),
        ("unix:/run/sidecast.sock", "unix:/run/sidecast.sock"),
        ("dns:///sidecast:8001", "dns:///sidecast:8001"),
    ],
)
def test_an_address_without_a_port_means_the_default_one(address: str, target: str) -> None:
    with Client(address) as client:
        assert repr(client) == f"Client({target!r})"


def test_threads_may_share_a_client(parlour: Parlour) -> None:
    with Client(parlour.address) as client:
        seen: list[int] = []
        threads = [
            threading.Thread(target=lambda: seen.append(len(client.predict("sst2", ["a"] * 3)))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [3] * 8


def test_a_client_needs_neither_torch_nor_a_registry() -> None:
    code = "import sys, sidecast; sidecast.Client, sidecast.AsyncClient; import serving.client; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert not loaded & {"PIL", "torch", "transformers", "obstore", "pydantic", "numpy", "side_registry", "ladder"}


@pytest.mark.parametrize(
    ("value", "share"),
    [
        *((value, 500) for value in (0.05, "0.05", ".05", "5%", "5 %")),
        *((0.1 + 0.2, 3000), (" 12.50% ", 1250), (1 / 8, 1250)),
        *(("0.01%", 1), (0.0001, 1), ("99.99%", 9999)),
    ],
)
def test_a_share_is_a_fraction_or_a_percentage_with_its_sign(value: float | str, share: int) -> None:
    assert share_of(value) == share
    assert rate_of(value) == pytest.approx(share / 10_000)
    assert Route(shares={2: value}) == Route(shares={2: share / 10_000})  # type: ignore[dict-item]
    assert Bounds(disagreement=value).disagreement == pytest.approx(share / 10_000)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("5", r"'5' has no unit: write a percentage with its sign \(5%\), or a fraction \(0.05\)"),
        (5, r"5 has no unit: write a percentage with its sign \(5%\), or a fraction \(0.05\)"),
        (500, r"500 has no unit: write a percentage with its sign \(5%\), or a fraction \(0.05\)"),
        ("1", r"'1' has no unit: write a percentage with its sign \(1%\), or a fraction \(0.01\)"),
        ("12.5", r"\(12.5%\), or a fraction \(0.125\)"),
        *(
            (bad, "written as a percentage")
            for bad in ("200%", "-5%", "five", "", "%", "5%%", "1e-1", "nan", "٥%", True)
        ),
    ],
)
def test_a_number_without_a_unit_is_neither_share_nor_rate(value: Any, says: str) -> None:
    for read in (share_of, rate_of):
        with pytest.raises(ValueError, match=says):
            read(value)


def test_a_share_leaves_something_in_steps_and_a_rate_need_not() -> None:
    for value in (0, 1, 1.0, "0%", "100%", "0.005%", 0.33333):
        with pytest.raises(ValueError, match=r"a share is 0.01% to 99.99%, in steps of 0.01%"):
            share_of(value)
        assert 0 <= rate_of(value) <= 1


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)
