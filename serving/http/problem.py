"""Errors as responses: `application/problem+json` (RFC 9457), with the reasons and details that gRPC callers get."""

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import NotRequired

from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from pydantic_core import to_json
from starlette.responses import Response
from typing_extensions import TypedDict

from serving.api.status import status_of
from serving.http.errors import HttpError, MethodNotAllowed

MEDIA_TYPE = "application/problem+json"

STATUSES: Mapping[int, int] = {
    code.value[0]: status
    for code, status in {
        StatusCode.INVALID_ARGUMENT: 400,
        StatusCode.FAILED_PRECONDITION: 400,
        StatusCode.UNAUTHENTICATED: 401,
        StatusCode.PERMISSION_DENIED: 403,
        StatusCode.NOT_FOUND: 404,
        StatusCode.ABORTED: 409,
        StatusCode.RESOURCE_EXHAUSTED: 429,
        StatusCode.INTERNAL: 500,
        StatusCode.UNAVAILABLE: 503,
        StatusCode.DEADLINE_EXCEEDED: 504,
    }.items()
}
"""By gRPC's code, as google.rpc.Code maps them. FAILED_PRECONDITION is 400, not 409, which OpenAI's clients retry."""

OPENAI = ("/v1/embeddings", "/v1/completions", "/v1/models", "/classify")
"""Begin the paths whose errors have OpenAI's form too."""
OPEN_INFERENCE = "/v2"
"""Begins the paths whose errors have Open Inference's form too."""


class OpenAIError(TypedDict):
    """An error as OpenAI's clients read it."""

    message: str
    type: str
    code: str
    param: str | None


class Violation(TypedDict):
    """A part of the request that breaks a rule."""

    field: str
    description: str


class Problem(TypedDict):
    """What went wrong."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    """A stable name of the error, for programs; the same as in gRPC's ErrorInfo."""
    request_id: str
    metadata: NotRequired[dict[str, str]]
    fields: NotRequired[list[Violation]]
    retry_after_s: NotRequired[float]
    error: NotRequired[str | OpenAIError]
    """The same once more, as clients of OpenAI or of the Open Inference Protocol read it."""


def problem_of(error: BaseException, request_id: str, path: str = "") -> Problem:
    """The problem that the caller is told. Logs errors that are INTERNAL, under the request's id.

    Args:
        path: of the request; says whose clients call.
    """
    status = status_of(error, request_id)
    code = error.status if isinstance(error, HttpError) else STATUSES.get(status.code, 500)
    problem = Problem(
        type="about:blank",
        title=HTTPStatus(code).phrase,
        status=code,
        detail=status.message,
        reason="INTERNAL",
        request_id=request_id,
    )
    _add_details(problem, status)
    if path.startswith(OPEN_INFERENCE):
        problem["error"] = problem["detail"]
    elif path.startswith(OPENAI):
        problem["error"] = openai_error(problem)
    return problem


def openai_error(problem: Problem) -> OpenAIError:
    """The problem as OpenAI's clients read it."""
    kind = "server_error" if problem["status"] >= 500 else "invalid_request_error"
    param = problem["fields"][0]["field"] if "fields" in problem else None
    return OpenAIError(message=problem["detail"], type=kind, code=problem["reason"], param=param)


def problem_response(error: BaseException, request_id: str, path: str) -> Response:
    """The response to a request that failed."""
    problem = problem_of(error, request_id, path)
    headers = {}
    if "retry_after_s" in problem:
        headers["Retry-After"] = str(ceil(problem["retry_after_s"]))
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allowed
    if problem["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(to_json(problem), problem["status"], headers, MEDIA_TYPE)


def _add_details(problem: Problem, status: Status) -> None:
    for detail in status.details:
        info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
        if detail.Unpack(info):
            problem["reason"] = info.reason
            if info.metadata:
                problem["metadata"] = dict(info.metadata)
        elif detail.Unpack(bad):
            problem["fields"] = [
                Violation(field=violation.field, description=violation.description)
                for violation in bad.field_violations
            ]
        elif detail.Unpack(retry):
            problem["retry_after_s"] = retry.retry_delay.ToNanoseconds() / 1e9
