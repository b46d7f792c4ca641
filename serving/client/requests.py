"""Calls of a client, without a channel: the request of each method, and the function that reads its response.

The sync and the async client share all of it. Wrong arguments that can be seen without a server raise the errors that a
server would send.
"""

import getpass
import hashlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from google.protobuf.message import Message

from protos import sidecast_pb2 as pb
from serving.client import results as results
from serving.client import routes as routes
from serving.client.arguments import (
    build,
    check_group,
    check_timeout,
    parse_ref,
    set_field,
    set_options,
    set_version_or_alias,
    write_refs,
    write_route,
    write_row,
    write_rows,
    write_seen,
)
from serving.client.errors import InvalidArtifactError, SidecastError
from serving.client.responses import (
    read_awaited,
    read_commit,
    read_comparisons,
    read_event,
    read_group,
    read_group_change,
    read_outcome,
    read_predictions,
    read_promoted,
    read_published,
    read_ranking,
    read_residents,
    read_retired,
    read_rolled,
    read_routed,
    read_task,
)

CHUNK_BYTES = 1 << 20
MANIFEST = "manifest.json"
AFFINITY = "sidecast-affinity"
"""Metadata of a call about one row: a hash of the row, or of its images where it has some. A load balancer that hashes
by it sends equal rows, and all questions about one image, to the same server, which has them in its caches."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One call of a gRPC method."""

    service: Literal["sidecast", "admin"]
    method: str
    request: Message | Iterator[Message]
    """One message, or the messages of a client stream."""
    parse: Callable[[Any], Result]
    """Makes the result from the response."""
    metadata: tuple[tuple[str, str], ...] = ()


def predict(
    task: str,
    rows: Sequence[results.Row],
    version: int | None,
    alias: str | None,
    timeout: float | None,
    decoding: Mapping[str, Any] | None,
    priority: int,
    route_key: str,
) -> Call[results.Predictions]:
    """Rows of one task."""
    ref = parse_ref(task, version, alias)
    request = pb.PredictRequest(task=ref.task, rows=write_rows(rows))
    set_version_or_alias(request, ref)
    set_options(request, timeout, decoding, priority, route_key)
    return Call("sidecast", "Predict", request, read_predictions, _affinity(request.rows))


def predict_tasks(
    tasks: Sequence[str],
    rows: Sequence[results.Row],
    timeout: float | None,
    decoding: Mapping[str, Any] | None,
    priority: int,
    route_key: str,
) -> Call[dict[str, results.Predictions | SidecastError]]:
    """The same rows for several tasks."""
    request = pb.PredictTasksRequest(tasks=write_refs(tasks), rows=write_rows(rows))
    set_options(request, timeout, decoding, priority, route_key)

    def parse(response: pb.PredictTasksResponse) -> dict[str, results.Predictions | SidecastError]:
        return {task: read_outcome(result) for task, result in zip(tasks, response.results, strict=True)}

    return Call("sidecast", "PredictTasks", request, parse, _affinity(request.rows))


def predict_group(
    group: str,
    rows: Sequence[results.Row],
    timeout: float | None,
    decoding: Mapping[str, Any] | None,
    priority: int,
    route_key: str,
) -> Call[dict[str, results.Predictions | SidecastError]]:
    """The same rows for the tasks of a group."""
    check_group(group)
    request = build(pb.PredictTasksRequest, group=group, rows=write_rows(rows))
    set_options(request, timeout, decoding, priority, route_key)

    def parse(response: pb.PredictTasksResponse) -> dict[str, results.Predictions | SidecastError]:
        return {result.task.task: read_outcome(result) for result in response.results}

    return Call("sidecast", "PredictTasks", request, parse, _affinity(request.rows))


def rank(
    task: str,
    query: str,
    passages: Sequence[str],
    version: int | None,
    top: int,
    timeout: float | None,
    priority: int,
    route_key: str,
) -> Call[results.Ranking]:
    """Passages of one query."""
    ref = parse_ref(task, version)
    request = build(pb.RankRequest, task=ref.task, query=query, passages=passages, top=top)
    set_version_or_alias(request, ref)
    set_options(request, timeout, None, priority, route_key)
    return Call("sidecast", "Rank", request, read_ranking)


def stream(
    task: str,
    row: results.Row,
    version: int | None,
    alias: str | None,
    timeout: float | None,
    decoding: Mapping[str, Any] | None,
    priority: int,
    route_key: str,
) -> Call[Any]:
    """One row's text while it is generated. `serving.client.streams` reads the responses."""
    ref = parse_ref(task, version, alias)
    request = pb.GenerateRequest(task=ref.task, row=write_row(row, "row"))
    set_version_or_alias(request, ref)
    set_options(request, timeout, decoding, priority, route_key)
    return Call("sidecast", "Generate", request, lambda response: response, _affinity([request.row]))


def tasks() -> Call[list[results.TaskInfo]]:
    """All tasks."""

    def parse(response: pb.ListTasksResponse) -> list[results.TaskInfo]:
        return [read_task(task) for task in response.tasks]

    return Call("admin", "ListTasks", pb.ListTasksRequest(), parse)


def task(name: str) -> Call[results.TaskInfo]:
    """One task; `name` may name a version or an alias."""
    ref = parse_ref(name)
    request = pb.GetTaskRequest(task=ref.task)
    set_version_or_alias(request, ref)
    return Call("admin", "GetTask", request, lambda response: read_task(response.task))


def history(task: str | None, limit: int, group: str | None) -> Call[list[results.Commit]]:
    """The newest `limit` commits, or all where it is 0; those about one task or group, or about all."""
    request = build(pb.HistoryRequest, task=task or "", limit=limit, group=group or "")
    return Call("admin", "History", request, lambda response: [read_commit(commit) for commit in response.commits])


def promote(task: str, version: int, alias: str | None, message: str) -> Call[results.Promoted]:
    """Move an alias to a version."""
    route = build(pb.Route, version=version)
    request = build(pb.SetRouteRequest, task=task, alias=alias or "", route=route, change=_change(message))
    return Call("admin", "SetRoute", request, read_promoted)


def set_route(
    task: str,
    alias: str | None,
    version: int | None,
    shares: Mapping[int, float | str] | None,
    shadows: Sequence[int],
    bounds: Mapping[str, Any] | routes.Bounds | None,
    seen: routes.Route | None,
    message: str,
) -> Call[routes.Routed]:
    """Replace an alias's route."""
    route = write_route(shares or {}, shadows, bounds)
    if version is not None:
        set_field(route, "version", version, "route.")
    request = build(pb.SetRouteRequest, task=task, alias=alias or "", route=route, change=_change(message))
    if seen is not None:
        request.seen.CopyFrom(write_seen(seen))
    return Call("admin", "SetRoute", request, read_routed)


def comparison(task: str, alias: str | None, disagreements: int) -> Call[routes.Comparisons]:
    """How the versions of an alias's route compare, with the newest `disagreements`."""
    request = build(pb.GetComparisonRequest, task=task, alias=alias or "", disagreements=disagreements)
    return Call("admin", "GetComparison", request, read_comparisons)


def await_generation(generation: int, timeout_s: float) -> Call[routes.Awaited]:
    """Wait for a generation of the registry; 0 is its newest."""
    check_timeout(timeout_s)
    request = build(pb.AwaitGenerationRequest, generation=generation)
    request.timeout.FromNanoseconds(int(timeout_s * 1e9))
    return Call("admin", "AwaitGeneration", request, read_awaited)


def rollback(task: str, alias: str | None, to: int | None, message: str) -> Call[results.Rolled]:
    """Move an alias back, or end the shares of its traffic."""
    request = build(pb.RollbackRequest, task=task, alias=alias or "", to=to or 0, change=_change(message))
    return Call("admin", "Rollback", request, read_rolled)


def retire(task: str, version: int, message: str) -> Call[results.Retired]:
    """Take a version out of service."""
    request = build(pb.RetireRequest, task=task, version=version, change=_change(message))
    return Call("admin", "Retire", request, read_retired)


def residents(task: str | None) -> Call[results.Residents]:
    """The versions that the server has loaded, of one task or of all."""
    request = build(pb.ListResidentsRequest, task=task or "")
    return Call("admin", "ListResidents", request, read_residents)


def groups() -> Call[list[results.Group]]:
    """All groups."""

    def parse(response: pb.ListGroupsResponse) -> list[results.Group]:
        return [read_group(group) for group in response.groups]

    return Call("admin", "ListGroups", pb.ListGroupsRequest(), parse)


def set_group(group: str, tasks: Sequence[str], message: str) -> Call[results.GroupChanged]:
    """Give a group its tasks, or make it."""
    check_group(group)
    request = build(pb.SetGroupRequest, group=group, tasks=write_refs(tasks), change=_change(message))
    return Call("admin", "SetGroup", request, read_group_change)


def rollback_group(group: str, to: int | None, message: str) -> Call[results.GroupChanged]:
    """Give a group the tasks of an earlier version."""
    check_group(group)
    request = build(pb.RollbackGroupRequest, group=group, to=to or 0, change=_change(message))
    return Call("admin", "RollbackGroup", request, read_group_change)


def delete_group(group: str, message: str) -> Call[int]:
    """Remove a group. The result is the generation."""
    check_group(group)
    request = build(pb.DeleteGroupRequest, group=group, change=_change(message))
    return Call("admin", "DeleteGroup", request, lambda response: response.generation)


def publish(
    folder: str | Path, alias: str | None, message: str, allow_untrained: bool, signature: bytes
) -> Call[results.Published]:
    """Upload a finished run.

    Raises:
        InvalidArtifactError: the folder has no manifest, or lacks a file that the manifest names.
    """
    folder = Path(folder).expanduser()
    manifest = _read_manifest(folder)
    header = build(
        pb.PublishRequest.Header,
        manifest=manifest,
        alias=alias or "",
        change=_change(message),
        allow_untrained=allow_untrained,
        signature=signature,
    )
    return Call("admin", "Publish", _upload(header, folder, _file_names(folder, manifest)), read_published)


def watch() -> Call[results.Event]:
    """What the server serves, at every change. `parse` reads one event."""
    return Call("admin", "Watch", pb.WatchRequest(), read_event)


def _affinity(rows: Sequence[pb.Row]) -> tuple[tuple[str, str], ...]:
    """Metadata of a call about these rows; empty for several rows, which any server may answer."""
    if len(rows) != 1:
        return ()
    [row] = rows
    shared = pb.Row(images=row.images) if row.images else row
    digest = hashlib.blake2b(shared.SerializeToString(deterministic=True), digest_size=8)
    return ((AFFINITY, digest.hexdigest()),)


def _read_manifest(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise InvalidArtifactError(f"{folder} is not a finished run: {MANIFEST}: {error.strerror}") from None


def _file_names(folder: Path, manifest: bytes) -> list[str]:
    """The files that the manifest names, all of them in the folder. The server checks the rest of the manifest."""
    try:
        names = [str(name) for name in json.loads(manifest)["files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidArtifactError(f"{folder} is not a finished run: {MANIFEST} does not name its files") from None
    for name in names:
        if not _is_text(name):
            raise InvalidArtifactError(f"{folder} is not a finished run: {name!a} is no file's name in UTF-8")
        if not (folder / name).is_file():
            raise InvalidArtifactError(f"{folder} is not a finished run: {name} is missing")
    return names


def _is_text(name: str) -> bool:
    """Whether it can be sent: no half of a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _upload(header: pb.PublishRequest.Header, folder: Path, names: list[str]) -> Iterator[pb.PublishRequest]:
    yield pb.PublishRequest(header=header)
    for name in names:
        with (folder / name).open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                yield pb.PublishRequest(chunk=pb.PublishRequest.Chunk(file=name, data=data))


def _change(message: str) -> pb.Change:
    """Who changes the registry, and why. Without an author the registry would name the server as the author."""
    host = socket.gethostname()
    try:
        author = f"{getpass.getuser()}@{host}"
    except (OSError, KeyError):
        author = f"unknown@{host}"
    author = author.encode("utf-8", "replace").decode()  # a user's name may be no UTF-8
    return build(pb.Change, author=author, message=message)
