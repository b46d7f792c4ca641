"""Errors of HTTP itself, before a request reaches a service. `problem` makes responses of them, as of all others."""

from typing import ClassVar

from serving.errors import RequestError


class HttpError(RequestError):
    """The request is no request of this API."""

    reason = "HTTP"
    status: ClassVar[int] = 400
    """Of the response."""


class MalformedRequest(HttpError):
    """The bytes are no HTTP request, or its line and headers are too long."""

    reason = "MALFORMED_REQUEST"
    message = "{why}"
    why: str


class NoRoute(HttpError):
    """No operation has this path."""

    reason = "NO_ROUTE"
    status = 404
    message = "there is nothing at {path!q}; GET /openapi.json lists what there is"
    path: str


class MethodNotAllowed(HttpError):
    """The path has operations, but none of this method."""

    reason = "METHOD_NOT_ALLOWED"
    status = 405
    message = "{method!q} is not possible here; use {allowed}"
    method: str
    allowed: str


class BodyTooSlow(HttpError):
    """The caller stopped sending before the body was complete."""

    reason = "BODY_TOO_SLOW"
    status = 408
    message = "no byte of the body came for {seconds:g} s; send it in one go"
    seconds: float


class BodyTooLarge(HttpError):
    """The body is larger than a message may be. It was not read to its end."""

    reason = "BODY_TOO_LARGE"
    status = 413
    message = "the body has more than {limit:,} bytes (max_message_bytes); send it in parts"
    limit: int


class UnsupportedMediaType(HttpError):
    """The body is no JSON by its headers."""

    reason = "UNSUPPORTED_MEDIA_TYPE"
    status = 415
    message = "{header} is {value!q}; send {instead}"
    header: str
    value: str
    instead: str
