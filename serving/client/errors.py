"""Errors of a client's call, and how a gRPC status becomes one of them.

    SidecastError
      NotFoundError              UnknownTaskError, UnknownVersionError, UnknownAliasError, UnknownGroupError
      InvalidRequestError        InvalidInputError, TooManyRowsError, InvalidNameError, InvalidRouteError,
                                 InvalidGroupError, InvalidArtifactError, MessageTooLargeError
      RefusedError               VersionRefusedError, IncompatibleSideError, VersionInUseError,
                                 NothingToRollBackError, RollbackUnclearError, NoEarlierGroupError
      UnavailableError           UnreachableError, NotLoadedError, DrainingError
      OverloadedError            too much load; try again after `retry_after_s`
      ContendedError             other writers were faster; try again
      RouteChangedError          look at the route again
      UnauthenticatedError       the server does not know who calls
      PermissionDeniedError      the caller's scopes do not allow it
      DeadlineExceededError
      CallCancelledError
      UnsupportedError           the server has no such method
      InternalError              SideFailedError

Each has a stable `reason`, the error's `fields` as text, and pickles. Knows gRPC and google.rpc, no server.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

DETAILS_KEY = "grpc-status-details-bin"
PROXY_WITHOUT_SERVER = ("Received http2 header with status: 5", "RayServeAPIService/ListApplications")
"""Parts of the message that a caller gets from a proxy with no server behind it: gRPC's text for an HTTP 5xx page, and
Ray Serve's text before it has an application."""

CAUSES = {
    "Connection refused": "no server listens there",
    "Expected SETTINGS frame": "that port does not speak gRPC; a server's gRPC port is 8001, unless it says another",
    "WRONG_VERSION_NUMBER": "that port has no TLS",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by an authority that this client trusts",
    "hostname lookup error": "its host name cannot be resolved",
}
"""What is in gRPC's text of a failed connection, and what it means."""

BY_REASON: dict[str, type["SidecastError"]] = {}
"""The class for each reason that a server sends. Filled as the classes are defined."""
BY_CODE: dict[grpc.StatusCode, type["SidecastError"]] = {}
"""The class for each code, where the reason is not known: it comes from a newer server, or from gRPC itself."""
CODES = {code.value[0]: code for code in grpc.StatusCode}


class SidecastError(Exception):
    """Root of the client's errors; `str()` is the message."""

    default_reason = "UNKNOWN"

    def __init_subclass__(
        cls, *, code: grpc.StatusCode | None = None, reasons: Sequence[str] | None = None, **options: Any
    ) -> None:
        """
        Args:
            code: a status with this code and an unknown reason becomes this class.
            reasons: a status with one of these reasons becomes this class; None: with the class's `default_reason`.
        """
        super().__init_subclass__(**options)
        if reasons is None:
            reasons = (cls.default_reason,) if "default_reason" in vars(cls) else ()
        BY_REASON.update(dict.fromkeys(reasons, cls))
        if code:
            BY_CODE[code] = cls

    def __init__(
        self,
        message: str,
        reason: str = "",
        fields: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        self.message = message
        self.reason = reason or self.default_reason
        self.fields = dict(fields or {})
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        super().__init__(message, self.reason, self.fields, retry_after_s, request_id)

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, reason={self.reason!r})"


class NotFoundError(SidecastError, code=grpc.StatusCode.NOT_FOUND, reasons=()):
    """The registry has no such task, version or alias."""

    default_reason = "NOT_FOUND"


class UnknownTaskError(NotFoundError):
    """The task was never published, or is deleted."""

    default_reason = "UNKNOWN_TASK"


class UnknownVersionError(NotFoundError):
    """The version was never published, or is retired."""

    default_reason = "UNKNOWN_VERSION"


class UnknownAliasError(NotFoundError):
    """The task has no such alias."""

    default_reason = "UNKNOWN_ALIAS"


class UnknownGroupError(NotFoundError):
    """There is no such group."""

    default_reason = "UNKNOWN_GROUP"


class InvalidRequestError(SidecastError, code=grpc.StatusCode.INVALID_ARGUMENT, reasons=()):
    """Something about the request itself; the same request fails again."""

    default_reason = "INVALID_ARGUMENT"


class InvalidInputError(InvalidRequestError, reasons=("INVALID_INPUT", "INVALID_ROW")):
    """A value of the request breaks a rule; `fields` names it."""

    default_reason = "INVALID_INPUT"


class TooManyRowsError(InvalidRequestError):
    """One request has more rows than the server or the task allows."""

    default_reason = "TOO_MANY_ROWS"


class InvalidNameError(InvalidRequestError):
    """A task's name, an alias or a reference breaks its rule."""

    default_reason = "INVALID_NAME"


class InvalidRouteError(InvalidRequestError):
    """A route breaks a rule, or names the alias's main version."""

    default_reason = "INVALID_ROUTE"


class InvalidGroupError(InvalidRequestError):
    """A group's list of tasks breaks a rule."""

    default_reason = "INVALID_GROUP"


class InvalidArtifactError(InvalidRequestError):
    """The run folder or the upload is not complete and sound."""

    default_reason = "INVALID_ARTIFACT"


class MessageTooLargeError(InvalidRequestError, reasons=()):
    """A request or an answer is larger than the client or the server accepts."""

    default_reason = "MESSAGE_TOO_LARGE"


class RefusedError(SidecastError, code=grpc.StatusCode.FAILED_PRECONDITION, reasons=()):
    """The server refuses it in its present state, or the registry's."""

    default_reason = "FAILED_PRECONDITION"


class IncompatibleSideError(RefusedError):
    """The side network was trained on another backbone, or with another tokenizer."""

    default_reason = "INCOMPATIBLE_SIDE"


class VersionRefusedError(RefusedError):
    """The server tried to load the version and refused it."""

    default_reason = "VERSION_REFUSED"


class VersionInUseError(RefusedError):
    """An alias or a route names the version."""

    default_reason = "VERSION_IN_USE"


class NothingToRollBackError(RefusedError):
    """The alias has no earlier version to go back to."""

    default_reason = "NOTHING_TO_ROLL_BACK"


class NoEarlierGroupError(RefusedError):
    """The group has no earlier version whose tasks can all be used."""

    default_reason = "NO_EARLIER_GROUP"


class RollbackUnclearError(RefusedError):
    """The alias's newest change took shares away. Name the version to go back to."""

    default_reason = "ROLLBACK_UNCLEAR"


class UnavailableError(SidecastError, code=grpc.StatusCode.UNAVAILABLE, reasons=()):
    """The server cannot answer now; a later try may succeed."""

    default_reason = "UNAVAILABLE"


class UnreachableError(UnavailableError, reasons=()):
    """Nothing answers at the address, or the connection broke."""

    default_reason = "UNREACHABLE"


class NotLoadedError(UnavailableError):
    """The version is in the registry but not on the server."""

    default_reason = "NOT_LOADED"


class DrainingError(UnavailableError):
    """The server is shutting down."""

    default_reason = "DRAINING"


class OverloadedError(SidecastError, code=grpc.StatusCode.RESOURCE_EXHAUSTED):
    """The server rejects the request because of load. Try again after `retry_after_s` seconds."""

    default_reason = "OVERLOADED"


class ContendedError(SidecastError, code=grpc.StatusCode.ABORTED):
    """Other writers to the registry were faster. Nothing was changed; try again."""

    default_reason = "CONTENDED"


class RouteChangedError(SidecastError):
    """The route is no longer the one that the request names as `seen`. Nothing was changed."""

    default_reason = "ROUTE_CHANGED"


class UnauthenticatedError(SidecastError, code=grpc.StatusCode.UNAUTHENTICATED):
    """The call has no token, or one that the server does not accept."""

    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(
    SidecastError, code=grpc.StatusCode.PERMISSION_DENIED, reasons=("PERMISSION_DENIED", "NOT_THIS_PORT")
):
    """The caller's scopes do not allow this, of which `fields` name one that would; or it comes by another port."""

    default_reason = "PERMISSION_DENIED"


class DeadlineExceededError(SidecastError, code=grpc.StatusCode.DEADLINE_EXCEEDED):
    """The timeout passed before the answer was there."""

    default_reason = "DEADLINE_EXPIRED"


class CallCancelledError(SidecastError, code=grpc.StatusCode.CANCELLED):
    """The caller cancelled the call."""

    default_reason = "CANCELLED"


class UnsupportedError(SidecastError, code=grpc.StatusCode.UNIMPLEMENTED, reasons=()):
    """The server has no such method."""

    default_reason = "UNIMPLEMENTED"


class InternalError(SidecastError, code=grpc.StatusCode.INTERNAL, reasons=()):
    """Something failed in the server, which logged it under `request_id`."""

    default_reason = "INTERNAL"


class SideFailedError(InternalError):
    """The task's side network raised, or computed something that is not a finite number."""

    default_reason = "SIDE_FAILED"


def from_status(status: Status) -> SidecastError:
    """The error that a server describes with a status and its details."""
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
    """The error of a failed call.

    Args:
        error: a `grpc.RpcError` or `grpc.aio.AioRpcError`.
        address: of the server, for the message.
    """
    code = error.code()
    details = error.details() or ""
    if status := _rich_status(error.trailing_metadata()):
        return from_status(status)
    if code is grpc.StatusCode.UNAVAILABLE or any(words in details for words in PROXY_WITHOUT_SERVER):
        return UnreachableError(f"no answer from {address}: {_cause(details)}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return MessageTooLargeError(f"{details}; send fewer rows in one call")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError(f"no answer from {address} within the timeout")
    return _by_code(code)(details or f"the call failed with {code}")


def _cause(details: str) -> str:
    return next((cause for words, cause in CAUSES.items() if words in details), details)


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
