"""A server whose callers have tokens: what each may call, see and change, over the wire."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.access import Access
from serving.access.tokens import create_token, revoke_token
from serving.api import Guards, permissions
from serving.api.guard import known_caller
from serving.client import (
    Client,
    OverloadedError,
    PermissionDeniedError,
    SidecastError,
    UnauthenticatedError,
)
from serving.config import AccessConfig
from serving.errors import PermissionDenied, Unauthenticated
from tests.serving.api_kit import RTE, SST2, TITLES, Parlour

SCOPES = {
    "reader": ["read:sst2"],
    "caller": ["predict:sst2", "predict:titles"],
    "other": ["predict:sst2"],
    "publisher": ["publish:sst2", "predict:rte"],
    "admin": ["admin"],
}


class House:
    """A server with three tasks, and a token for each of SCOPES."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "tokens.toml"
        self.tokens = {
            name: create_token(self.file, name=name, scopes=scopes, tenant=f"tenant of {name}".replace(" ", "-"))
            for name, scopes in SCOPES.items()
        }
        self.parlour = Parlour(folder, [SST2, RTE, TITLES], access=AccessConfig(tokens=str(self.file)))

    def client(self, name: str = "", **how: Any) -> Client:
        return Client(self.parlour.address, retry=False, token=self.tokens.get(name), **how)

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.parlour.address)

    def metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.tokens[name]}"),)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("guarded"))
    with made.parlour.open():
        yield made


def test_without_a_token_only_health_answers(house: House) -> None:
    with house.client() as client, pytest.raises(UnauthenticatedError, match="send a token") as caught:
        client.predict("sst2", ["good"])
    assert caught.value.reason == "UNAUTHENTICATED"
    with house.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        tensors = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert tensors.ServerReady(oip.ServerReadyRequest()).ready
        for call in (
            lambda: tensors.ServerMetadata(oip.ServerMetadataRequest()),
            lambda: list(tensors.ModelStreamInfer(iter([]))),
            lambda: list(described(channel)),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert list(described(channel, house.metadata("reader")))


def described(channel: grpc.Channel, metadata: Any = None) -> Any:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    return reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), metadata=metadata)


def test_a_caller_does_what_its_scopes_say(house: House) -> None:
    with house.client("caller") as client:
        assert client.predict("sst2", ["good"]).task == "sst2"
        assert client.stream("titles", "a b").result().text
        assert client.task("sst2").task == "sst2"
        for refused in (
            lambda: client.predict("rte", [{"sentence1": "a", "sentence2": "b"}]),
            lambda: client.predict("unknown", ["a"]),
            lambda: client.task("rte"),
            lambda: client.rollback("sst2"),
            lambda: client.retire("sst2", 1),
            lambda: client.comparison("sst2", disagreements=1),
        ):
            with pytest.raises(PermissionDeniedError):
                refused()
        with pytest.raises(PermissionDeniedError, match="caller may not predict rte") as caught:
            client.predict_tasks(["sst2", "rte"], ["good"])
        assert caught.value.reason == "PERMISSION_DENIED"
        assert caught.value.fields["scope"] == "predict:rte"
    with house.client("reader") as client, pytest.raises(PermissionDeniedError):
        client.predict("sst2", ["good"])


def test_lists_show_what_a_caller_may_read(house: House) -> None:
    def seen(name: str) -> tuple[set[str], set[str], set[str]]:
        with house.client(name) as client:
            tasks = {task.task for task in client.tasks()}
            history = {action.task for commit in client.history() for action in commit.actions}
            watched = next(iter(client.watch()))
        return tasks, history, set(watched.changed)

    assert seen("reader") == ({"sst2"}, {"sst2"}, {"sst2"})
    assert seen("publisher") == ({"sst2", "rte"},) * 3
    assert seen("admin") == ({"sst2", "rte", "titles"},) * 3


def test_a_tenant_is_the_tokens_whatever_a_header_says(house: House) -> None:
    house.parlour.service.tenants.clear()
    with house.channel() as channel:
        tensors = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        text = oip.InferTensorContents(bytes_contents=[b"good"])
        tensor = oip.ModelInferRequest.InferInputTensor(name="sentence", datatype="BYTES", shape=[1], contents=text)
        request = oip.ModelInferRequest(model_name="sst2", inputs=[tensor])
        for name in ("caller", "other"):
            metadata = (*house.metadata(name), ("x-tenant", "forged"), ("tenant", "forged"))
            tensors.ModelInfer(request, metadata=metadata)
            list(tensors.ModelStreamInfer(iter([request]), metadata=metadata))
    with house.client("caller") as client:
        client.predict("sst2", ["good"])
        client.predict_tasks(["sst2"], ["good"])
        client.stream("titles", "a").result()
    assert (
        house.parlour.service.tenants == ["tenant-of-caller"] * 2 + ["tenant-of-other"] * 2 + ["tenant-of-caller"] * 3
    )


def test_a_refused_request_of_a_stream_leaves_the_others(house: House) -> None:
    text = oip.InferTensorContents(bytes_contents=[b"good"])
    tensor = oip.ModelInferRequest.InferInputTensor(name="sentence", datatype="BYTES", shape=[1], contents=text)
    requests = [
        oip.ModelInferRequest(model_name=name, id=name, inputs=[tensor]) for name in ("sst2", "rte", "sst2", "unknown")
    ]
    with house.channel() as channel:
        tensors = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        responses = list(tensors.ModelStreamInfer(iter(requests), metadata=house.metadata("caller")))
    faults = {r.infer_response.id: r.error_message for r in responses if r.error_message}
    assert {name: text.split(";")[0] for name, text in faults.items()} == {
        "rte": "caller may not predict rte",
        "unknown": "caller may not predict unknown",
    }
    assert sum(not r.error_message for r in responses) == 2


def test_a_publisher_changes_its_tasks_alone_and_is_their_author(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sidecast.audit")
    with house.client("publisher") as client:
        published = client.publish(house.parlour.run(SST2, 1))
        client.promote("sst2", published.version)
        client.rollback("sst2")
        with pytest.raises(PermissionDeniedError, match="publisher may not publish rte"):
            client.publish(house.parlour.run(RTE, 1))
        with pytest.raises(PermissionDeniedError):
            client.retire("sst2", published.version)
        assert {commit.author for commit in client.history("sst2")[-3:]} == {"publisher"}
    with house.client("admin") as client:
        client.retire("sst2", published.version)
        with pytest.raises(SidecastError):
            client.rollback("sst2")
    lines = [record.audit for record in caplog.records if record.name == "sidecast.audit"]  # type: ignore[attr-defined]
    assert [(line["event"], line["caller"], line["tasks"], line["result"]) for line in lines] == [
        ("change", "publisher", ["sst2"], "OK"),
        ("change", "publisher", ["sst2"], "OK"),
        ("change", "publisher", ["sst2"], "OK"),
        ("refusal", "publisher", ["rte"], "PERMISSION_DENIED"),
        ("refusal", "publisher", ["sst2"], "PERMISSION_DENIED"),
        ("change", "admin", ["sst2"], "OK"),
        ("change", "admin", ["sst2"], "FAILED_PRECONDITION"),
    ]
    assert lines[0]["tenant"] == "tenant-of-publisher"
    assert lines[0]["method"] == "/sidecast.v1.Admin/Publish"
    assert lines[0]["peer"] == "127.0.0.1"
    assert not [token for token in house.tokens.values() if token in caplog.text]


def test_a_method_that_the_table_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {path: rule for path, rule in permissions.RULES.items() if not path.endswith(("Predict", "ListTasks"))}
    monkeypatch.setattr("serving.api.guard.RULES", rules)
    made = House(tmp_path)
    with made.parlour.open(), made.client("admin") as client:
        for call in (lambda: client.predict("sst2", ["good"]), lambda: client.tasks()):
            with pytest.raises(PermissionDeniedError, match="admin may not call /sidecast"):
                call()
        assert client.task("sst2").task == "sst2"


def publish_until_it_ends(parlour: Parlour, watch: Iterator[Any]) -> None:
    """The server has to read the file first, and looks at the token of a watch once a second."""
    for seed in range(2, 1000):
        parlour.publish(SST2, seed)
        next(watch)


def test_a_revoked_token_ends_a_watch_and_refuses_the_next_call(tmp_path: Path) -> None:
    made = House(tmp_path)
    with made.parlour.open(), made.client("admin") as client:
        watch = client.watch(timeout=60)
        next(watch)
        revoke_token(made.file, "admin")
        with pytest.raises(UnauthenticatedError):
            publish_until_it_ends(made.parlour, watch)
        with pytest.raises(UnauthenticatedError, match="not one that this server knows"):
            client.tasks()


def test_a_caller_beyond_its_rate_is_told_when_to_come_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    access = AccessConfig(caller_rows_per_s=0.001, caller_burst_s=1000)
    with (
        Parlour(tmp_path, [SST2, RTE], access=access).open() as parlour,
        Client(parlour.address, retry=False) as client,
    ):
        client.predict("sst2", ["good"])
        with caplog.at_level(logging.INFO, "sidecast.audit"), pytest.raises(OverloadedError) as caught:
            client.predict("sst2", ["good"])
        assert caught.value.reason == "RATE_LIMITED"
        assert caught.value.retry_after_s is not None
        assert 900 < caught.value.retry_after_s <= 1000
        assert ": RATE_LIMITED " in caplog.text
        assert client.predict("rte", [{"sentence1": "a", "sentence2": "b"}]).task == "rte"
        assert client.tasks()


def test_changes_are_in_the_audit_log_where_callers_have_no_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sidecast.audit")
    with Parlour(tmp_path, [SST2]).open() as parlour, Client(parlour.address) as client:
        client.promote("sst2", 1)
        client.tasks()
    (line,) = [record.audit for record in caplog.records if record.name == "sidecast.audit"]  # type: ignore[attr-defined]
    assert (line["event"], line["caller"], line["tasks"], line["result"]) == ("change", "", ["sst2"], "OK")


def test_the_metrics_are_for_callers_who_may_read_every_task(house: House) -> None:
    import http.client

    def status(path: str, name: str = "") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", house.parlour.server.metrics_port, timeout=30)
        try:
            connection.request("GET", path, headers=dict(house.metadata(name)) if name else {})
            return connection.getresponse().status
        finally:
            connection.close()

    assert [status("/metrics"), status("/metrics", "reader"), status("/metrics", "admin")] == [401, 403, 200]
    assert status("/readyz") == status("/healthz") == 200


def test_a_token_may_come_from_a_function(house: House) -> None:
    asked: list[str] = []

    def token() -> str:
        asked.append("")
        return house.tokens["reader"]

    with Client(house.parlour.address, token=token) as client:
        client.tasks()
        client.tasks()
    assert len(asked) == 2
    assert house.tokens["reader"] not in repr(client._settings)


class Context:
    """What another port than gRPC's has of a call."""

    def __init__(self, **headers: str) -> None:
        self._headers = headers

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self._headers.items())


async def test_another_port_asks_for_each_request(house: House) -> None:
    guards = Guards(Access(house.parlour.config.access))
    predict, tasks = "/sidecast.v1.Sidecast/Predict", "/sidecast.v1.Admin/ListTasks"
    known = Context(authorization=f"Bearer {house.tokens['caller']}")
    call = await guards.admit(known, predict, pb.PredictRequest(task="sst2"))
    assert call
    assert known_caller() == call.caller
    assert (call.caller.name, call.caller.tenant) == ("caller", "tenant-of-caller")
    with pytest.raises(PermissionDenied):
        await guards.admit(known, predict, pb.PredictRequest(task="rte"))
    with pytest.raises(Unauthenticated):
        await guards.admit(Context(), predict, pb.PredictRequest(task="sst2"))
    listing = await guards.admit(known, tasks, pb.ListTasksRequest())
    assert listing
    response = pb.ListTasksResponse(tasks=[pb.TaskInfo(task=name) for name in ("rte", "sst2")])
    await listing.show(response)
    assert [task.task for task in response.tasks] == ["sst2"]
    assert await Guards(Access(AccessConfig())).admit(Context(), predict, pb.PredictRequest(task="rte")) is None


def test_with_an_admin_port_changes_come_by_it_alone(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2], access=AccessConfig(admin_port=0)).open() as parlour:
        with Client(parlour.address, retry=False) as client:
            for change in (
                lambda: client.promote("sst2", 1),
                lambda: client.publish(parlour.run(SST2, 1)),
                lambda: client.retire("sst2", 1),
            ):
                with pytest.raises(PermissionDeniedError, match="comes by the server's admin port alone") as caught:
                    change()
                assert caught.value.reason == "NOT_THIS_PORT"
            assert client.task("sst2").task == "sst2"
        with Client(f"127.0.0.1:{parlour.server.admin_port}") as admin:
            assert admin.publish(parlour.run(SST2, 1)).version == 2
            assert admin.predict("sst2", ["good"]).version == 1


def test_a_group_is_for_those_who_may_ask_all_its_tasks(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.parlour.registry.set_group("mine", ["sst2"])
    house.parlour.registry.set_group("both", ["sst2", "titles"])
    with house.parlour.open(), house.channel() as channel:
        tensors = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

        def listed(name: str) -> list[str]:
            index = tensors.RepositoryIndex(oip.RepositoryIndexRequest(), metadata=house.metadata(name))
            return [model.name for model in index.models]

        row = {"sentence": "good", "body": "good"}
        with house.client("caller") as caller:
            assert list(caller.predict_group("both", [row])) == ["sst2", "titles"]
            assert [group.group for group in caller.groups()] == ["both", "mine"]
            with pytest.raises(PermissionDeniedError):
                caller.set_group("mine", ["titles"])
        with house.client("other") as other:
            assert list(other.predict_group("mine", [row])) == ["sst2"]
            assert [group.group for group in other.groups()] == ["mine"]
            for group in ("both", "nope"):  # a refusal does not say whether it exists
                with pytest.raises(PermissionDeniedError, match=f"may not predict all tasks of group {group}"):
                    other.predict_group(group, [row])
        assert listed("caller") == ["sst2", "titles", "group/both", "group/mine"]
        assert listed("other") == ["sst2", "group/mine"]
        inputs = [oip.ModelInferRequest.InferInputTensor(name="sentence", datatype="BYTES", shape=[1])]
        inputs[0].contents.bytes_contents.append(b"good")
        for call in (
            lambda: tensors.ModelMetadata(
                oip.ModelMetadataRequest(name="group/both"), metadata=house.metadata("other")
            ),
            lambda: tensors.ModelInfer(
                oip.ModelInferRequest(model_name="group/both", inputs=inputs), metadata=house.metadata("other")
            ),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
