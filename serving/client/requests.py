"""A client's calls, without a channel: arguments to a request, and how its response is read.

The sync and the async client share all of it. Faults that need no server to be seen are raised here, as the errors that
a server would tell.
"""

import getpass
import hashlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from google.protobuf.message import Message

from protos import sidecast_pb2 as pb
from serving.client import results as results
from serving.client import routes as routes
from serving.client.errors import InvalidArtifactError, InvalidInputError, InvalidNameError, SidecastError
from serving.client.responses import (
    read_awaited,
    read_commit,
    read_comparisons,
    read_event,
    read_predictions,
    read_promoted,
    read_published,
    read_result,
    read_retired,
    read_rolled,
    read_routed,
    read_task,
)

CHUNK_BYTES = 1 << 20
MANIFEST = "manifest.json"
AFFINITY = "sidecast-affinity"
"""Metadata of a call about one row: the row's hash. A load balancer that goes by it sends equal rows to one server,
which has kept their activations."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    service: Literal["sidecast", "admin"]
    method: str
    request: Message | Iterator[Message]
    parse: Callable[[Any], Result]
    metadata: tuple[tuple[str, str], ...] = ()


def predict(
    task: str,
    rows: Sequence[results.Row],
    version: int | None,
    alias: str | None,
    timeout: float | None,
    generation: Mapping[str, Any] | None,
    priority: int,
    route_key: str,
) -> Call[results.Predictions]:
    ref = parse_ref(task, version, alias)
    request = pb.PredictRequest(task=ref.task, rows=_write_rows(rows))
    _copy_which(ref, request)
    _copy_wish(request, timeout, generation, priority, route_key)
    return Call("sidecast", "Predict", request, read_predictions, _affinity(request.rows))


def predict_tasks(
    tasks: Sequence[str],
    rows: Sequence[results.Row],
    timeout: float | None,
    generation: Mapping[str, Any] | None,
    priority: int,
    route_key: str,
) -> Call[dict[str, results.Predictions | SidecastError]]:
    _check_list(tasks, "tasks")
    refs = [parse_ref(task) for task in tasks]
    request = pb.PredictTasksRequest(tasks=refs, rows=_write_rows(rows))
    _copy_wish(request, timeout, generation, priority, route_key)

    def parse(response: pb.PredictTasksResponse) -> dict[str, results.Predictions | SidecastError]:
        return {task: read_result(result) for task, result in zip(tasks, response.results, strict=True)}

    return Call("sidecast", "PredictTasks", request, parse, _affinity(request.rows))


def stream(
    task: str,
    row: results.Row,
    version: int | None,
    alias: str | None,
    timeout: float | None,
    generation: Mapping[str, Any] | None,
    priority: int,
    route_key: str,
) -> Call[Any]:
    """Its responses are read by `client_streams`."""
    ref = parse_ref(task, version, alias)
    request = pb.GenerateRequest(task=ref.task, row=_write_row(row, "row"))
    _copy_which(ref, request)
    _copy_wish(request, timeout, generation, priority, route_key)
    return Call("sidecast", "Generate", request, lambda response: response, _affinity([request.row]))


def tasks() -> Call[list[results.TaskInfo]]:
    return Call(
        "admin", "ListTasks", pb.ListTasksRequest(), lambda response: [read_task(each) for each in response.tasks]
    )


def task(name: str) -> Call[results.TaskInfo]:
    ref = parse_ref(name)
    request = pb.GetTaskRequest(task=ref.task)
    _copy_which(ref, request)
    return Call("admin", "GetTask", request, lambda response: read_task(response.task))


def history(task: str | None, limit: int) -> Call[list[results.Commit]]:
    request = pb.HistoryRequest(task=task or "", limit=limit)
    return Call("admin", "History", request, lambda response: [read_commit(each) for each in response.commits])


def promote(task: str, version: int, alias: str | None, message: str) -> Call[results.Promoted]:
    route = pb.Route(version=version)
    request = pb.SetRouteRequest(task=task, alias=alias or "", route=route, change=_change(message))
    return Call("admin", "SetRoute", request, read_promoted)


def set_route(
    task: str,
    alias: str | None,
    version: int | None,
    shares: Mapping[int, int] | None,
    shadows: Sequence[int],
    bounds: Mapping[str, Any] | None,
    seen: routes.Route | None,
    message: str,
) -> Call[routes.Routed]:
    route = _write_route(shares or {}, shadows, bounds)
    if version is not None:
        _set(route, "version", version, "route.")
    request = pb.SetRouteRequest(task=task, alias=alias or "", route=route, change=_change(message))
    if seen is not None:
        request.seen.CopyFrom(_write_route(seen.shares, seen.shadows, seen.bounds and asdict(seen.bounds)))
    return Call("admin", "SetRoute", request, read_routed)


def comparison(task: str, alias: str | None, disagreements: int) -> Call[routes.Comparisons]:
    request = pb.GetComparisonRequest(task=task, alias=alias or "")
    _set(request, "disagreements", disagreements)
    return Call("admin", "GetComparison", request, read_comparisons)


def await_generation(generation: int, timeout_s: float) -> Call[routes.Awaited]:
    request = pb.AwaitGenerationRequest()
    _set(request, "generation", generation)
    request.timeout.FromNanoseconds(int(timeout_s * 1e9))
    return Call("admin", "AwaitGeneration", request, read_awaited)


def rollback(task: str, alias: str | None, to: int | None, message: str) -> Call[results.Rolled]:
    request = pb.RollbackRequest(task=task, alias=alias or "", to=to or 0, change=_change(message))
    return Call("admin", "Rollback", request, read_rolled)


def retire(task: str, version: int, message: str) -> Call[results.Retired]:
    return Call("admin", "Retire", pb.RetireRequest(task=task, version=version, change=_change(message)), read_retired)


def publish(folder: str | Path, alias: str | None, message: str) -> Call[results.Published]:
    folder = Path(folder).expanduser()
    manifest = _read(folder, MANIFEST)
    header = pb.PublishRequest.Header(manifest=manifest, alias=alias or "", change=_change(message))
    return Call("admin", "Publish", _upload(header, folder, _file_names(folder, manifest)), read_published)


def watch() -> Call[results.Event]:
    return Call("admin", "Watch", pb.WatchRequest(), read_event)


def parse_ref(text: str, version: int | None = None, alias: str | None = None) -> pb.TaskRef:
    """`sst2`, `sst2@canary` or `sst2:7`; or the task's name and one of the other arguments."""
    name, mark, which = next((parts for mark in "@:" if (parts := text.partition(mark))[1]), (text, "", ""))
    if (bool(mark), version is not None, alias is not None).count(True) > 1:
        raise InvalidInputError(f"{text!r}: name one version or one alias", fields={"field": "task"})
    if mark == ":" and not (which.isascii() and which.isdigit() and len(which) < 10):
        raise InvalidNameError(f"{text!r} is no task reference: use TASK, TASK@alias or TASK:version")
    if mark == "@" and not which:
        raise InvalidNameError(f"{text!r} is no task reference: name an alias after the @")
    version = int(which) if mark == ":" else version
    alias = which if mark == "@" else alias
    ref = pb.TaskRef(task=name)
    if version is not None:
        ref.version = version
    elif alias is not None:
        ref.alias = alias
    return ref


def _copy_wish(
    request: pb.PredictRequest | pb.PredictTasksRequest | pb.GenerateRequest,
    timeout: float | None,
    generation: Mapping[str, Any] | None,
    priority: int,
    route_key: str,
) -> None:
    if timeout is not None:
        request.timeout.FromNanoseconds(int(timeout * 1e9))
    for name, value in (generation or {}).items():
        _set_generation(request.generation, name, value)
    _set(request, "priority", priority)
    _set(request, "route_key", route_key)


def _copy_which(ref: pb.TaskRef, request: pb.PredictRequest | pb.GenerateRequest | pb.GetTaskRequest) -> None:
    if ref.HasField("version"):
        request.version = ref.version
    elif ref.HasField("alias"):
        request.alias = ref.alias


def _write_rows(rows: Sequence[results.Row]) -> list[pb.Row]:
    _check_list(rows, "rows")
    return [_write_row(row, f"rows[{number}]") for number, row in enumerate(rows)]


def _write_row(row: results.Row, where: str) -> pb.Row:
    try:
        match row:
            case str():
                return pb.Row(text=row)
            case results.Prompt():
                return pb.Row(prompt=row.text)
            case Mapping():
                return pb.Row(fields=row)
    except (TypeError, UnicodeEncodeError) as error:
        raise _invalid(where, f"cannot be sent as text: {error}") from None
    raise _invalid(where, f"must be a text, fields by name, or a Prompt, got {type(row).__name__}")


def _affinity(rows: Sequence[pb.Row]) -> tuple[tuple[str, str], ...]:
    """Nothing for several rows: they are spread."""
    if len(rows) != 1:
        return ()
    digest = hashlib.blake2b(rows[0].SerializeToString(deterministic=True), digest_size=8)
    return ((AFFINITY, digest.hexdigest()),)


def _set_generation(message: pb.Generation, name: str, value: Any) -> None:
    if name not in pb.Generation.DESCRIPTOR.fields_by_name:
        known = ", ".join(pb.Generation.DESCRIPTOR.fields_by_name)
        raise _invalid(f"generation.{name}", f"is no setting; use {known}")
    if name == "early_stopping" and isinstance(value, bool):
        value = str(value).lower()
    if value is not None:
        _set(message, name, value, "generation.")


def _set(message: Message, name: str, value: Any, where: str = "") -> None:
    """Raises InvalidInputError, naming `where` and the field, for a value that the field cannot have."""
    try:
        setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise _invalid(where + name, f"cannot be {value!r}: {error}") from None


def _write_route(shares: Mapping[int, int], shadows: Sequence[int], bounds: Mapping[str, Any] | None) -> pb.Route:
    """Set even where it is plain: then it ends what was there."""
    _check_list(shadows, "route.shadows")
    try:
        each = [pb.Route.Share(version=version, share=share) for version, share in shares.items()]
        route = pb.Route(shares=each, shadows=shadows)
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid("route", f"must have shares by version and a list of shadows: {error}") from None
    if bounds is not None:
        route.bounds.SetInParent()
        for name, value in bounds.items():
            _set_bound(route.bounds, name, value)
    return route


def _set_bound(message: pb.Route.Bounds, name: str, value: Any) -> None:
    if name not in (known := pb.Route.Bounds.DESCRIPTOR.fields_by_name):
        raise _invalid(f"route.bounds.{name}", f"is no bound; use {', '.join(known)}")
    if value is not None:
        _set(message, name, value, "route.bounds.")


def _check_list(values: Sequence[Any], where: str) -> None:
    if isinstance(values, (str, bytes, Mapping)):
        raise _invalid(where, f"must be a list, got one {type(values).__name__}; put it in brackets")


def _invalid(field: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"{field}: {why}", fields={"field": field, "why": why})


def _upload(header: pb.PublishRequest.Header, folder: Path, names: list[str]) -> Iterator[pb.PublishRequest]:
    yield pb.PublishRequest(header=header)
    for name in names:
        with (folder / name).open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                yield pb.PublishRequest(chunk=pb.PublishRequest.Chunk(file=name, data=data))


def _file_names(folder: Path, manifest: bytes) -> list[str]:
    """The files a manifest names, all there. What else it says is the server's to check."""
    try:
        names = [str(name) for name in json.loads(manifest)["files"]]
    except (ValueError, KeyError, TypeError):
        raise InvalidArtifactError(f"{folder} is not a finished run: {MANIFEST} does not name its files") from None
    for name in names:
        if not (folder / name).is_file():
            raise InvalidArtifactError(f"{folder} is not a finished run: {name} is missing")
    return names


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise InvalidArtifactError(f"{folder} is not a finished run: {name}: {error.strerror}") from None


def _change(message: str) -> pb.Change:
    return pb.Change(author=_whoami(), message=message)


def _whoami() -> str:
    """The registry would else take the server's own name for the author."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"
