"""One operation of the API: what is asked, what answers it, and how it is described in the OpenAPI document."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPMethod
from typing import Any

from serving.http.body import Body

Reply = Callable[[Any, Any, Any], Awaitable[None]]
"""ASGI's: sends the response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    name: str
    """Its operationId."""
    method: HTTPMethod
    path: str
    """With parameters in braces, as Starlette and OpenAPI have them."""
    summary: str
    handler: Callable[..., Awaitable[Reply]]
    """Called with the HttpCall and, if there is one, the body."""
    request: type[Body] | None = None
    """Of the body; None: it has none."""
    responses: Mapping[str, Any]
    """Type of the response with status 200, by media type. `str` and `bytes` are free text and any bytes."""
    negative: Mapping[int, Any] = field(default_factory=dict)
    """Type of a response that is no problem but a "no", by status."""
    binary: bool = False
    """Binary tensors may follow the JSON of the body."""
    counted: bool = False
    """A request that is refused before its task is known counts in the metrics."""
    lasting: bool = False
    """It answers while the server shuts down, and a drain does not wait for it."""
    tag: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Descriptions of the path's parameters."""
