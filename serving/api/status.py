"""The table from errors to gRPC statuses: a code, a message and google.rpc details.

The table is closed. Any other error is INTERNAL: it is logged here under an id, and the caller gets that id and no
details. The servicers use it for failed calls, and for the tasks that fail inside a PredictTasks.
"""

import logging
import secrets
from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from serving import errors as serving
from side_registry import errors as registry

log = logging.getLogger(__name__)

DOMAIN = "sidecast"
DETAILS_KEY = "grpc-status-details-bin"

CODES: Mapping[type[Exception], StatusCode] = {
    registry.UnknownTask: StatusCode.NOT_FOUND,
    registry.UnknownVersion: StatusCode.NOT_FOUND,
    registry.UnknownAlias: StatusCode.NOT_FOUND,
    registry.UnknownGroup: StatusCode.NOT_FOUND,
    serving.RequestError: StatusCode.INVALID_ARGUMENT,
    registry.InvalidName: StatusCode.INVALID_ARGUMENT,
    registry.InvalidSpec: StatusCode.INVALID_ARGUMENT,
    registry.InvalidRow: StatusCode.INVALID_ARGUMENT,
    registry.InvalidRoute: StatusCode.INVALID_ARGUMENT,
    registry.InvalidGroup: StatusCode.INVALID_ARGUMENT,
    registry.ArtifactError: StatusCode.INVALID_ARGUMENT,
    registry.InvalidSignature: StatusCode.INVALID_ARGUMENT,
    serving.Unauthenticated: StatusCode.UNAUTHENTICATED,
    serving.NotThisPort: StatusCode.PERMISSION_DENIED,
    serving.NotThisMachine: StatusCode.PERMISSION_DENIED,
    serving.PermissionDenied: StatusCode.PERMISSION_DENIED,
    serving.LoadError: StatusCode.FAILED_PRECONDITION,
    registry.VersionInUse: StatusCode.FAILED_PRECONDITION,
    registry.NothingToRollBack: StatusCode.FAILED_PRECONDITION,
    registry.RollbackUnclear: StatusCode.FAILED_PRECONDITION,
    registry.NoEarlierGroup: StatusCode.FAILED_PRECONDITION,
    registry.NotARegistry: StatusCode.FAILED_PRECONDITION,
    registry.SigningFailed: StatusCode.FAILED_PRECONDITION,
    registry.CorruptBlob: StatusCode.FAILED_PRECONDITION,
    registry.UnreadableCommit: StatusCode.FAILED_PRECONDITION,
    registry.LogReplaced: StatusCode.FAILED_PRECONDITION,
    registry.RouteChanged: StatusCode.ABORTED,
    registry.Contended: StatusCode.ABORTED,
    serving.Shed: StatusCode.RESOURCE_EXHAUSTED,
    serving.OutOfMemory: StatusCode.RESOURCE_EXHAUSTED,
    serving.NotLoaded: StatusCode.UNAVAILABLE,
    serving.VersionRefused: StatusCode.FAILED_PRECONDITION,
    serving.PassTooLarge: StatusCode.FAILED_PRECONDITION,
    serving.Draining: StatusCode.UNAVAILABLE,
    registry.RegistryNotFound: StatusCode.UNAVAILABLE,
    registry.StoreFailed: StatusCode.UNAVAILABLE,
    serving.DeadlineExpired: StatusCode.DEADLINE_EXCEEDED,
    serving.SideFailed: StatusCode.INTERNAL,
    serving.ImageFailed: StatusCode.INTERNAL,
}
"""A class is listed for its subclasses too."""

MAX_MESSAGE_BYTES, MAX_VALUE_BYTES, MAX_FIELDS = 1000, 200, 8
"""A status is sent as metadata. Clients accept 8 KiB of it, and one byte of a message can take up to five there."""


def code_of(error: BaseException) -> StatusCode:
    """The code of an error's class, or of the nearest listed class above it; INTERNAL where none is listed."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), StatusCode.INTERNAL)


def status_of(error: BaseException, request_id: str = "") -> Status:
    """The status that the caller gets, with the request's id. Logs errors that are INTERNAL, under it or a new one."""
    code = code_of(error)
    if code is StatusCode.INTERNAL:
        return _internal(error, request_id or secrets.token_hex(8))
    info = [RequestInfo(request_id=request_id)] if request_id else []
    return _status(code, str(error), [*_details(error), *info])


def trailers(status: Status) -> tuple[tuple[str, bytes], ...]:
    """The metadata that carries a status with its details."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def _internal(error: BaseException, request_id: str) -> Status:
    traceback = (
        None if isinstance(error, serving.ServingError) else error
    )  # where it was raised, its traceback is logged
    log.error("internal error %s: %s", request_id, error, exc_info=traceback)
    known = any(kind in CODES for kind in type(error).__mro__)
    message = str(error) if known else f"internal error, see {request_id} in the server's log"
    info = _error_info(error) if known else ErrorInfo(reason="INTERNAL", domain=DOMAIN)
    return _status(StatusCode.INTERNAL, message, [info, RequestInfo(request_id=request_id)])


def _status(code: StatusCode, message: str, details: list[Message]) -> Status:
    status = Status(code=code.value[0], message=_cut(message, MAX_MESSAGE_BYTES))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _details(error: BaseException) -> list[Message]:
    details: list[Message] = [_error_info(error)]
    match error:
        case serving.InvalidInput() | registry.InvalidRow():
            details.append(_bad_request(error.field, error.why))
        case serving.TooManyRows():
            details.append(_bad_request("rows", f"at most {error.limit}"))
        case registry.InvalidName():
            details.append(_bad_request(error.what, f"use {error.rule}"))
        case registry.InvalidRoute():
            details.append(_bad_request("route", error.why))
        case registry.InvalidGroup():
            details.append(_bad_request("tasks", error.why))
        case (
            serving.Overloaded()
            | serving.TooSlow()
            | serving.TaskOverloaded()
            | serving.TooManyBytes()
            | serving.RateLimited()
            | serving.OutOfMemory()
        ):
            details.append(RetryInfo(retry_delay=_duration(error.retry_after_s)))
    return details


def _error_info(error: BaseException) -> ErrorInfo:
    fields = {name: _text(value) for name, value in vars(error).items() if not name.startswith("_")}
    return ErrorInfo(
        reason=getattr(error, "reason", "INTERNAL"), domain=DOMAIN, metadata=dict(list(fields.items())[:MAX_FIELDS])
    )


def _bad_request(field: str, why: str) -> BadRequest:
    violation = BadRequest.FieldViolation(field=_cut(field, MAX_VALUE_BYTES), description=_cut(why, MAX_VALUE_BYTES))
    return BadRequest(field_violations=[violation])


def _text(value: object) -> str:
    if isinstance(value, (tuple, list, set, frozenset)):
        return _cut(", ".join(map(str, value)), MAX_VALUE_BYTES)
    return _cut(str(value), MAX_VALUE_BYTES)


def _cut(text: str, limit: int) -> str:
    """The text cut to at most `limit` bytes of UTF-8; characters that have no UTF-8 are replaced."""
    data = text[: limit + 1].encode(errors="replace")  # a character has at least one byte
    return data.decode() if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "..."


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
