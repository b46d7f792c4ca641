"""The error table is closed, and what it says survives the way to the client."""

import logging
import pickle

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from serving import errors as serving
from serving.api.status import CODES, code_of, status_of
from serving.client import errors as client_errors
from serving.errors import CannotListen, PortInUse, StartError
from side_registry import errors as registry

EXAMPLES: list[tuple[Exception, grpc.StatusCode, str]] = [
    (registry.UnknownTask("sts", ("sst2", "stsb")), grpc.StatusCode.NOT_FOUND, "UnknownTaskError"),
    (registry.UnknownVersion("sst2", 7, (1, 2)), grpc.StatusCode.NOT_FOUND, "UnknownVersionError"),
    (registry.UnknownAlias("sst2", "x", ("production",)), grpc.StatusCode.NOT_FOUND, "UnknownAliasError"),
    (registry.UnknownGroup("gard", ("guard",)), grpc.StatusCode.NOT_FOUND, "UnknownGroupError"),
    (registry.InvalidGroup("guard", "no task"), grpc.StatusCode.INVALID_ARGUMENT, "InvalidGroupError"),
    (registry.NoEarlierGroup("guard", 1), grpc.StatusCode.FAILED_PRECONDITION, "NoEarlierGroupError"),
    (registry.InvalidName("alias", "7", "letters"), grpc.StatusCode.INVALID_ARGUMENT, "InvalidNameError"),
    (registry.InvalidSpec("a", "b"), grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequestError"),
    (registry.InvalidRow("sentence", "is empty"), grpc.StatusCode.INVALID_ARGUMENT, "InvalidInputError"),
    (registry.InvalidRoute("sst2", "a", "shares: none"), grpc.StatusCode.INVALID_ARGUMENT, "InvalidRouteError"),
    (registry.ArtifactError("run", "no manifest"), grpc.StatusCode.INVALID_ARGUMENT, "InvalidArtifactError"),
    (registry.VersionInUse("sst2", 1, ("production",)), grpc.StatusCode.FAILED_PRECONDITION, "VersionInUseError"),
    (registry.NothingToRollBack("sst2", "a", 1), grpc.StatusCode.FAILED_PRECONDITION, "NothingToRollBackError"),
    (registry.RollbackUnclear("sst2", "a", 2, 9, 1), grpc.StatusCode.FAILED_PRECONDITION, "RollbackUnclearError"),
    (registry.RouteChanged("sst2", "a"), grpc.StatusCode.ABORTED, "RouteChangedError"),
    (registry.LogReplaced("/x", 9), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (registry.NotARegistry("/x", "files"), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (registry.InvalidSignature("it is no bundle"), grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequestError"),
    (registry.SigningFailed("key.pem", "no key"), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (registry.CorruptBlob("ab", "short"), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (registry.UnreadableCommit("log/1", "bad"), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (registry.Contended("/x", 64), grpc.StatusCode.ABORTED, "ContendedError"),
    (registry.RegistryNotFound("/x"), grpc.StatusCode.UNAVAILABLE, "UnavailableError"),
    (registry.StoreFailed("/x", "log/1", "away"), grpc.StatusCode.UNAVAILABLE, "UnavailableError"),
    (serving.InvalidInput("rows[3].sentence", "is empty"), grpc.StatusCode.INVALID_ARGUMENT, "InvalidInputError"),
    (serving.TooManyRows(9, 8), grpc.StatusCode.INVALID_ARGUMENT, "TooManyRowsError"),
    (serving.NotLoaded("sst2", 2, "still loading"), grpc.StatusCode.UNAVAILABLE, "NotLoadedError"),
    (serving.VersionRefused("sst2", 2, "damaged"), grpc.StatusCode.FAILED_PRECONDITION, "VersionRefusedError"),
    (serving.Overloaded(9, 8, 0.25), grpc.StatusCode.RESOURCE_EXHAUSTED, "OverloadedError"),
    (serving.TooSlow(3.5, 1.0, 2.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "OverloadedError"),
    (serving.TaskOverloaded("sst2", "rows waiting", 9, 8, 0.25), grpc.StatusCode.RESOURCE_EXHAUSTED, "OverloadedError"),
    (serving.TooManyBytes(9_000, 8_000, 1.0), grpc.StatusCode.RESOURCE_EXHAUSTED, "OverloadedError"),
    (serving.RateLimited("ci", "sst2", "rows", 100.0, 0.25), grpc.StatusCode.RESOURCE_EXHAUSTED, "OverloadedError"),
    (serving.Unauthenticated("send a token"), grpc.StatusCode.UNAUTHENTICATED, "UnauthenticatedError"),
    (serving.PermissionDenied("ci", "read", "read"), grpc.StatusCode.PERMISSION_DENIED, "PermissionDeniedError"),
    (serving.NotThisPort("Publish"), grpc.StatusCode.PERMISSION_DENIED, "PermissionDeniedError"),
    (serving.NotThisMachine(), grpc.StatusCode.PERMISSION_DENIED, "PermissionDeniedError"),
    (serving.PassTooLarge(4_000, 9_000, 8_000), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (serving.TextsTooLong("sst2", 2, 9_000, 4_096), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (serving.OutOfMemory(32), grpc.StatusCode.RESOURCE_EXHAUSTED, "OverloadedError"),
    (serving.Draining(), grpc.StatusCode.UNAVAILABLE, "DrainingError"),
    (serving.DeadlineExpired(), grpc.StatusCode.DEADLINE_EXCEEDED, "DeadlineExceededError"),
    (serving.SideFailed("sst2", 2, "NaN"), grpc.StatusCode.INTERNAL, "SideFailedError"),
    (serving.ImageFailed("NaN"), grpc.StatusCode.INTERNAL, "InternalError"),
    (serving.IncompatibleSide("sst2", "a", "b"), grpc.StatusCode.FAILED_PRECONDITION, "IncompatibleSideError"),
    (serving.CorruptSide("sst2", 2, "cut"), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (serving.UntrustedSide("sst2", 2, "no signature"), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (serving.SideTooLarge("sst2", 2, 9, 8), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (serving.GoldenMismatch("sst2", 2, 0, "0.1"), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (serving.ReplayTooLong("sst2", 2, "long"), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
    (serving.LoadFailed("sst2", 2, "away"), grpc.StatusCode.FAILED_PRECONDITION, "RefusedError"),
]
NAMES = [type(error).__name__ for error, _, _ in EXAMPLES]


def leaves(root: type) -> set[type]:
    found = {leaf for child in root.__subclasses__() for leaf in leaves(child)}
    return found or {root}


def of_package(kinds: set[type], package: str) -> set[type]:
    """Tests define errors of their own."""
    return {kind for kind in kinds if kind.__module__.startswith(package)}


def details(status: Status, kind):
    return next((kind for detail in status.details if detail.Unpack(kind)), None)


def test_every_error_has_an_example_here() -> None:
    known = of_package(leaves(serving.ServingError), "serving") | of_package(leaves(registry.RegistryError), "side_")
    callers = {
        kind for kind in known if not issubclass(kind, StartError) and not kind.__module__.startswith("serving.http")
    }
    raised_itself = {serving.NotLoaded}  # though it has a subclass
    assert callers | raised_itself == {type(error) for error, _, _ in EXAMPLES}


@pytest.mark.parametrize(("error", "code", "name"), EXAMPLES, ids=NAMES)
def test_an_error_has_its_code_and_reaches_the_client_whole(error: Exception, code: grpc.StatusCode, name: str) -> None:
    status = status_of(error)
    assert any(kind in CODES for kind in type(error).__mro__)
    assert (code_of(error), status.code) == (code, code.value[0])
    info = details(status, ErrorInfo())
    assert (info.reason, info.domain) == (error.reason, "sidecast")  # type: ignore[attr-defined]
    seen = client_errors.from_status(status)
    assert type(seen).__name__ == name
    assert (str(seen), seen.reason) == (str(error), info.reason)
    assert seen.fields == dict(info.metadata)
    assert seen.fields.keys() == vars(error).keys()
    copy = pickle.loads(pickle.dumps(seen))
    assert (type(copy), str(copy), vars(copy)) == (type(seen), str(seen), vars(seen))


@pytest.mark.parametrize("error", [PortInUse(8001), PortInUse(8002, "metrics_port"), CannotListen("x", 1, "why")])
def test_start_errors_pickle(error: StartError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_a_bad_field_is_named() -> None:
    [violation] = details(
        status_of(serving.InvalidInput("rows[3].sentence", "is empty")), BadRequest()
    ).field_violations
    assert (violation.field, violation.description) == ("rows[3].sentence", "is empty")


@pytest.mark.parametrize(
    "error",
    [
        serving.Overloaded(9, 8, 0.25),
        serving.TooSlow(3.5, 1.0, 0.25),
        serving.TaskOverloaded("sst2", "rows waiting", 9, 8, 0.25),
    ],
)
def test_a_rejected_caller_gets_a_retry_delay(error: serving.NotServed) -> None:
    status = status_of(error)
    assert details(status, RetryInfo()).retry_delay.ToMilliseconds() == 250
    assert client_errors.from_status(status).retry_after_s == 0.25


def test_an_unexpected_error_is_generic_and_logged_with_an_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status = status_of(RuntimeError("secret path /secret/x"))
    request_id = details(status, RequestInfo()).request_id
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(status)
    assert request_id in status.message
    assert request_id in caplog.text
    assert "secret path" in caplog.text
    seen = client_errors.from_status(status)
    assert (type(seen), seen.request_id, seen.reason) == (client_errors.InternalError, request_id, "INTERNAL")


@pytest.mark.parametrize(
    ("error", "has_traceback"), [(serving.SideFailed("sst2", 2, "it is slow"), False), (RuntimeError("boom"), True)]
)
def test_only_unexpected_errors_are_logged_with_a_traceback(
    caplog: pytest.LogCaptureFixture, error: Exception, has_traceback: bool
) -> None:
    request_id = details(status_of(error), RequestInfo()).request_id
    [record] = caplog.records
    assert request_id in record.getMessage()
    assert bool(record.exc_info) is has_traceback


@pytest.mark.parametrize(
    "error",
    [
        registry.UnknownTask("ü" * 10_000, [f"täsk{number}" for number in range(10_000)]),
        registry.InvalidRow("🙂" * 10_000, "🙂" * 10_000),
        serving.InvalidInput("\ud800" * 5_000, "half a pair"),
    ],
    ids=["tasks", "emoji", "surrogates"],
)
def test_a_status_fits_into_metadata_whatever_the_caller_sent(error: Exception) -> None:
    status = status_of(error)
    in_base64 = 4 * (len(status.SerializeToString()) + 2) // 3
    percent_encoded = 3 * len(status.message.encode())
    assert in_base64 + percent_encoded < 7_500


def test_reasons_of_a_newer_server_keep_their_code_s_kind() -> None:
    status = status_of(registry.UnknownTask("a"))
    status.details[0].Pack(ErrorInfo(reason="UNKNOWN_TENANT", domain="sidecast"))
    seen = client_errors.from_status(status)
    assert (type(seen), seen.reason) == (client_errors.NotFoundError, "UNKNOWN_TENANT")
