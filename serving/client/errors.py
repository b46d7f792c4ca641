"""What a call can fail with, seen by the caller, and how it is told from a gRPC status.

    SidecastError
      NotFoundError              UnknownTaskError, UnknownVersionError, UnknownAliasError
      InvalidRequestError        InvalidInputError, TooManyRowsError, InvalidNameError, InvalidRouteError,
                                 InvalidArtifactError, MessageTooLargeError
      RefusedError               VersionRefusedError, IncompatibleSideError, VersionInUseError,
                                 NothingToRollBackError, RollbackUnclearError
      UnavailableError           UnreachableError, NotLoadedError, DrainingError
      OverloadedError            shed; try again after `retry_after_s`
      ContendedError             other writers were faster; try again
      RouteChangedError          look at the route again
      DeadlineExceededError
      CallCancelledError
      UnsupportedError           the server has no such method
      InternalError              SideFailedError

Each carries a stable `reason`, the error's `fields` as text, and pickles. Knows gRPC and google.rpc, no server.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

DETAILS_KEY = "grpc-status-details-bin"
NOBODY_BEHIND = ("Received http2 header with status: 5", "RayServeAPIService/ListApplications")
"""In what a proxy says that finds no server behind it: as gRPC tells of its HTTP page, and as Ray Serve's says before
it knows an application."""


class SidecastError(Exception):
    """Root of the client's errors; `str()` is the message."""

    default_reason = "UNKNOWN"

    def __init__(
        self,
        message: str,
        reason: str = "",
        fields: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        self.message, self.reason, self.fields = message, reason or self.default_reason, dict(fields or {})
        self.retry_after_s, self.request_id = retry_after_s, request_id
        super().__init__(message, self.reason, self.fields, retry_after_s, request_id)

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, reason={self.reason!r})"


class NotFoundError(SidecastError):
    default_reason = "NOT_FOUND"


class UnknownTaskError(NotFoundError):
    default_reason = "UNKNOWN_TASK"


class UnknownVersionError(NotFoundError):
    default_reason = "UNKNOWN_VERSION"


class UnknownAliasError(NotFoundError):
    default_reason = "UNKNOWN_ALIAS"


class InvalidRequestError(SidecastError):
    default_reason = "INVALID_ARGUMENT"


class InvalidInputError(InvalidRequestError):
    default_reason = "INVALID_INPUT"


class TooManyRowsError(InvalidRequestError):
    default_reason = "TOO_MANY_ROWS"


class InvalidNameError(InvalidRequestError):
    default_reason = "INVALID_NAME"


class InvalidRouteError(InvalidRequestError):
    default_reason = "INVALID_ROUTE"


class InvalidArtifactError(InvalidRequestError):
    default_reason = "INVALID_ARTIFACT"


class MessageTooLargeError(InvalidRequestError):
    default_reason = "MESSAGE_TOO_LARGE"


class RefusedError(SidecastError):
    default_reason = "FAILED_PRECONDITION"


class IncompatibleSideError(RefusedError):
    default_reason = "INCOMPATIBLE_SIDE"


class VersionRefusedError(RefusedError):
    """The server looked at the version and does not serve it."""

    default_reason = "VERSION_REFUSED"


class VersionInUseError(RefusedError):
    default_reason = "VERSION_IN_USE"


class NothingToRollBackError(RefusedError):
    default_reason = "NOTHING_TO_ROLL_BACK"


class RollbackUnclearError(RefusedError):
    """Shares were taken away just before; say where to."""

    default_reason = "ROLLBACK_UNCLEAR"


class UnavailableError(SidecastError):
    default_reason = "UNAVAILABLE"


class UnreachableError(UnavailableError):
    """Nothing answers at the address, or the connection broke."""

    default_reason = "UNREACHABLE"


class NotLoadedError(UnavailableError):
    default_reason = "NOT_LOADED"


class DrainingError(UnavailableError):
    default_reason = "DRAINING"


class OverloadedError(SidecastError):
    default_reason = "OVERLOADED"


class ContendedError(SidecastError):
    default_reason = "CONTENDED"


class RouteChangedError(SidecastError):
    """It is no longer as it was seen."""

    default_reason = "ROUTE_CHANGED"


class DeadlineExceededError(SidecastError):
    default_reason = "DEADLINE_EXPIRED"


class CallCancelledError(SidecastError):
    default_reason = "CANCELLED"


class UnsupportedError(SidecastError):
    default_reason = "UNIMPLEMENTED"


class InternalError(SidecastError):
    """The server logged it under `request_id`."""

    default_reason = "INTERNAL"


class SideFailedError(InternalError):
    default_reason = "SIDE_FAILED"


BY_REASON: Mapping[str, type[SidecastError]] = {
    kind.default_reason: kind
    for kind in (
        UnknownTaskError,
        UnknownVersionError,
        UnknownAliasError,
        InvalidInputError,
        TooManyRowsError,
        InvalidNameError,
        InvalidRouteError,
        InvalidArtifactError,
        IncompatibleSideError,
        VersionRefusedError,
        VersionInUseError,
        NothingToRollBackError,
        RollbackUnclearError,
        NotLoadedError,
        DrainingError,
        OverloadedError,
        ContendedError,
        RouteChangedError,
        DeadlineExceededError,
        CallCancelledError,
        SideFailedError,
    )
} | {"INVALID_ROW": InvalidInputError}

BY_CODE: Mapping[grpc.StatusCode, type[SidecastError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: RefusedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.ABORTED: ContendedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.INTERNAL: InternalError,
}
"""For reasons that this client does not know: of a newer server, or of gRPC itself."""

CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_status(status: Status) -> SidecastError:
    """An error that a server of ours tells with its details."""
    info = _detail(status, ErrorInfo())
    retry = _detail(status, RetryInfo())
    request = _detail(status, RequestInfo())
    reason = info.reason if info else ""
    kind = BY_REASON.get(reason) or _by_code(CODES.get(status.code))
    return kind(
        status.message,
        reason,
        dict(info.metadata) if info else None,
        retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
        request.request_id if request else None,
    )


def from_call(error: Any, address: str) -> SidecastError:
    """An error of a failed call: a `grpc.RpcError` or `grpc.aio.AioRpcError`."""
    code, details = error.code(), error.details() or ""
    if status := _rich_status(error.trailing_metadata()):
        return from_status(status)
    if code is grpc.StatusCode.UNAVAILABLE or any(words in details for words in NOBODY_BEHIND):
        return UnreachableError(f"no answer from {address}: {details}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return MessageTooLargeError(f"{details}; send fewer rows in one call")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError(f"no answer from {address} within the timeout")
    return _by_code(code)(details or f"the call failed with {code}")


def _by_code(code: grpc.StatusCode | None) -> type[SidecastError]:
    return BY_CODE.get(code, SidecastError) if code else SidecastError


def _rich_status(metadata: Iterable[tuple[str, str | bytes]] | None) -> Status | None:
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                return None
    return None


def _detail(status: Status, kind: Any) -> Any:
    """The status's detail of that kind; None where it has none."""
    return next((kind for detail in status.details if detail.Unpack(kind)), None)
