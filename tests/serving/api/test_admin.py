"""The Admin service with a real registry and reconciler; through the client wherever it can send the request."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.api.admin_messages import Watched, write_event
from serving.client import errors as errors
from serving.client.aio import AsyncClient
from serving.client.client import Client
from serving.client.results import Event
from serving.versions.pool import PoolState
from side_registry import MANIFEST, SIDE_NETWORK
from tests.serving.api_kit import RTE, SST2, TITLES, Parlour

Request = pb.PublishRequest


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Parlour]:
    """A server of its own, with one task."""
    with Parlour(tmp_path, [SST2]).open() as parlour:
        yield parlour


@pytest.fixture
def client(opened: Parlour) -> Iterator[Client]:
    with Client(opened.address) as client:
        yield client


@pytest.fixture
def stub(opened: Parlour) -> Iterator[Any]:
    with grpc.insecure_channel(opened.address) as channel:
        yield sidecast_pb2_grpc.AdminStub(channel)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which must be empty again after the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def pieces(run: Path, size: int = 100, **header: Any) -> list[Request]:
    data = (run / SIDE_NETWORK).read_bytes()
    head = Request.Header(manifest=(run / MANIFEST).read_bytes(), **header)
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    return [Request(header=head), *[Request(chunk=Request.Chunk(file=SIDE_NETWORK, data=chunk)) for chunk in chunks]]


def refusal(stub: Any, requests: list[Request]) -> errors.SidecastError:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Publish(iter(requests))
    return errors.from_status(rpc_status.from_call(caught.value))


async def until(is_true: Callable[[], bool]) -> None:
    while not is_true():  # noqa: ASYNC110 - another process's doing, with no event to wait for
        await asyncio.sleep(0.02)


def test_a_published_run_answers_at_once_and_its_history_says_who(
    opened: Parlour, client: Client, temporary: Path
) -> None:
    first = client.publish(opened.run(SST2, 1), message="better")
    again = client.publish(opened.run(SST2, 1))
    assert (first.task, first.version, first.aliases, first.already) == ("sst2", 2, {}, False)
    assert (again.version, again.already, again.generation) == (2, True, first.generation)
    assert client.wait_served(first.generation, timeout=5).served == first.generation
    assert client.predict("sst2:2", ["a"]).version == 2
    assert client.predict("sst2", ["a"]).version == 1
    newest = client.history("sst2")[-1]
    assert (newest.generation, newest.message) == (first.generation, "better")
    assert "@" in newest.author
    assert [(action.verb, action.version) for action in newest.actions] == [("publish", 2)]


def test_a_new_task_is_production_and_an_alias_moves_when_named(opened: Parlour, client: Client) -> None:
    new = client.publish(opened.run(RTE))
    assert new.aliases == {"production": 1}
    canary = client.publish(opened.run(SST2, 1), alias="canary")
    assert canary.aliases == {"canary": 2}
    client.wait_served(canary.generation, timeout=5)
    assert client.predict("sst2@canary", ["a"]).version == 2
    assert client.predict("rte", [{"sentence1": "a", "sentence2": "b"}]).version == 1


def test_an_untrained_run_is_published_only_when_that_is_said(opened: Parlour, client: Client, stub: Any) -> None:
    run = opened.run(RTE)
    manifest = json.loads((run / MANIFEST).read_bytes())
    (run / MANIFEST).write_text(json.dumps(manifest | {"untrained": True}))
    with pytest.raises(errors.InvalidArtifactError, match="it is untrained"):
        client.publish(run)
    assert [task.task for task in client.tasks()] == ["sst2"]
    assert client.publish(run, allow_untrained=True).aliases == {"production": 1}
    assert [version.untrained for version in client.task("rte").versions] == [True]
    assert [version.untrained for version in client.task("sst2").versions] == [False]


def test_promote_roll_back_and_retire(opened: Parlour, client: Client) -> None:
    opened.publish(SST2, 1)
    promoted = client.promote("sst2", 2, message="it is better")
    assert (promoted.alias, promoted.version) == ("production", 2)
    client.wait_served(promoted.generation, timeout=5)
    assert client.predict("sst2", ["a"]).version == 2
    with pytest.raises(errors.VersionInUseError, match="in use as production"):
        client.retire("sst2", 2)
    rolled = client.rollback("sst2")
    assert (rolled.version_from, rolled.version_to) == (2, 1)
    with pytest.raises(errors.NothingToRollBackError):
        client.rollback("sst2")
    retired = client.retire("sst2", 2)
    client.wait_served(retired.generation, timeout=5)
    with pytest.raises(errors.UnknownVersionError, match="retired"):
        client.predict("sst2:2", ["a"])
    assert client.predict("sst2", ["a"]).version == 1


def test_a_version_that_does_not_fit_leaves_the_old_one_serving_and_says_why(opened: Parlour, client: Client) -> None:
    opened.publish(SST2, 1, backbone="other")
    moved = client.promote("sst2", 2)
    client.wait_served(moved.generation, timeout=5)
    assert client.predict("sst2", ["a"]).version == 1
    info = client.task("sst2")
    assert (info.aliases, info.serving) == ({"production": 2}, {"production": 1})
    assert [version.resident for version in info.versions] == [True, False]
    assert "trained on sha256:other" in info.versions[1].failure


def test_a_task_without_a_resident_version_is_listed_without_a_spec(opened: Parlour, client: Client) -> None:
    generation = client.publish(opened.run(TITLES, backbone="other")).generation
    client.wait_served(generation, timeout=5)
    sst2, titles = client.tasks()
    assert sst2.spec is not None
    assert (sst2.spec.kind, sst2.spec.fields, sst2.spec.labels) == ("classification", ("sentence",), SST2.labels)
    assert titles.spec is None
    assert titles.serving == {}
    assert titles.versions[0].failure


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda client: client.promote("nope", 1), errors.UnknownTaskError),
        (lambda client: client.promote("sst2", 9), errors.UnknownVersionError),
        (lambda client: client.promote("sst2", 1, alias="7"), errors.InvalidNameError),
        (lambda client: client.promote("sst2", 1, message="x" * 5000), errors.InvalidNameError),
        (lambda client: client.rollback("sst2", alias="canary"), errors.UnknownAliasError),
        (lambda client: client.retire("sst2", 9), errors.UnknownVersionError),
        (lambda client: client.task("nope"), errors.UnknownTaskError),
        (lambda client: client.history("nope"), errors.UnknownTaskError),
        (lambda client: client.history(limit=-1), errors.InvalidInputError),
    ],
)
def test_verbs_refuse_missing_tasks_versions_and_aliases(client: Client, call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call(client)


def test_history_is_oldest_first_and_can_be_cut(opened: Parlour, client: Client) -> None:
    opened.publish(RTE)
    commits = client.history()
    assert [commit.generation for commit in commits] == [1, 2]
    assert commits[0].time is not None
    assert [(action.verb, action.alias) for action in commits[1].actions] == [
        ("publish", None),
        ("set_alias", "production"),
    ]
    assert client.history(limit=1) == commits[1:]
    assert [commit.generation for commit in client.history("sst2")] == [1]


def test_a_damaged_upload_leaves_nothing(opened: Parlour, stub: Any, temporary: Path) -> None:
    run = opened.run(SST2, 1)
    header, *chunks = pieces(run)
    other = Request(chunk=Request.Chunk(file="other", data=b"x"))
    up = Request(chunk=Request.Chunk(file="../other", data=b"x"))
    flipped = Request(chunk=Request.Chunk(file=SIDE_NETWORK, data=bytes(len(chunks[0].chunk.data))))
    cases: list[tuple[list[Request], str, str]] = [
        ([], "INVALID_INPUT", "header: is missing"),
        ([Request(), header], "INVALID_ARTIFACT", "the upload ended"),
        (chunks, "INVALID_INPUT", "header: must come before"),
        ([header, header], "INVALID_INPUT", "header: came twice"),
        ([header, other], "INVALID_INPUT", "none of the manifest's files"),
        ([header, up], "INVALID_INPUT", "none of the manifest's files"),
        ([header, *chunks[:-1]], "INVALID_ARTIFACT", f"bytes before the end of {SIDE_NETWORK}"),
        ([header, *chunks, chunks[0]], "INVALID_ARTIFACT", "more bytes than its manifest says"),
        ([header, flipped, *chunks[1:]], "INVALID_ARTIFACT", "sha256 differs"),
        ([Request(header=Request.Header(manifest=b"{"))], "INVALID_ARTIFACT", "the uploaded run"),
        ([Request(header=Request.Header(manifest=b" " * (17 << 20)))], "INVALID_ARTIFACT", "larger than"),
    ]
    for requests, reason, says in cases:
        error = refusal(stub, requests)
        assert error.reason == reason, says
        assert says in str(error)
        assert str(temporary) not in str(error)
    assert len(opened.registry.state().tasks["sst2"].versions) == 1


def test_a_manifest_may_not_name_a_path_or_too_much(opened: Parlour, stub: Any) -> None:
    run = opened.run(SST2, 1)
    manifest = json.loads((run / MANIFEST).read_bytes())
    blob = manifest["files"].pop(SIDE_NETWORK)
    for files, says in (({"../x": blob}, "not a plain file name"), ({"x": blob | {"size": 200_000}}, "200000 bytes")):
        header = Request.Header(manifest=json.dumps(manifest | {"files": files}).encode())
        error = refusal(stub, [Request(header=header)])
        assert (error.reason, says in str(error)) == ("INVALID_ARTIFACT", True)


def test_a_bad_alias_publishes_nothing(opened: Parlour, stub: Any) -> None:
    assert refusal(stub, pieces(opened.run(SST2, 1), alias="7")).reason == "INVALID_NAME"
    assert opened.registry.state().generation == 1


async def test_a_watcher_sees_the_state_and_then_every_change(opened: Parlour) -> None:
    seen: list[Event] = []

    async def watch(client: AsyncClient) -> None:
        async for event in client.watch():
            seen.append(event)

    async with AsyncClient(opened.address) as client:
        watching = asyncio.create_task(watch(client))
        await until(lambda: bool(seen))
        assert seen == [Event(wanted=1, served=1, changed={"sst2": {"production": 1}})]
        generation = (await client.publish(opened.run(SST2, 1), alias="production")).generation
        await until(lambda: seen[-1].served == generation)
        moved = [event.changed for event in seen[1:] if event.changed]
        assert moved == [{"sst2": {"production": 2}}]
        opened.registry.delete_task("sst2")
        await until(lambda: seen[-1].served == generation + 1)
        assert {"sst2": {}} in [event.changed for event in seen]
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching


def test_a_watcher_keeps_no_resident_alive_and_rarely_polls_without_changes() -> None:
    class Unread(dict[Any, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("read through")

    state = PoolState(generation=1, wanted=1, tasks=Unread(), aliases=Unread(), routes=Unread())
    before = Watched.of(state)
    event = write_event(before, Watched.of(replace(state, generation=2, wanted=2, residents={})))
    assert (event.generations.served, list(event.changed)) == (2, [])
    assert {field.name for field in fields(Watched)} == {"generations", "tasks", "aliases", "routes"}
