"""The OpenAPI 3.1 document of the API, made from its operations and the types of their bodies."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from serving.http import problem
from serving.http.call import MAX_TIMEOUT_S
from serving.http.operation import Operation
from serving.http.problem import Problem
from serving.metrics import installed_version

REFERENCE = "#/components/schemas/{model}"
TEXT = "text/plain"
MISTAKES = {
    400: "The request breaks a rule.",
    404: "There is no such task, version or alias.",
    500: "The server failed.",
}
"""Statuses of problems, where a request reaches a service."""
OF_BODIES = {
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is no JSON by its headers.",
    429: "Too much load, or a limit; see Retry-After.",
    504: "The deadline passed.",
}
"""Statuses of problems, where a request has a body."""
UNAVAILABLE = "The server shuts down, or has not loaded the version."

HEADERS: list[dict[str, Any]] = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Echoed, and told in problems. Without one, or where it is not 1 to 128 visible characters of "
        "ASCII, the server makes one.",
        "schema": {"type": "string"},
    },
    {
        "name": "X-Request-Timeout",
        "in": "header",
        "description": "Seconds that the caller waits. After them the request ends with 504.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
    },
]
ECHO = {"X-Request-Id": {"description": "The request's.", "required": True, "schema": {"type": "string"}}}


def openapi(operations: Sequence[Operation]) -> bytes:
    """The document as JSON."""
    references, definitions = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, references)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Sidecast",
            "version": installed_version("sidecast"),
            "description": "Tasks over HTTP. Errors are application/problem+json with the reasons that gRPC has.",
        },
        "paths": paths,
        "components": {"schemas": definitions},
    }
    return json.dumps(document).encode()


def _schemas(operations: Sequence[Operation]) -> tuple[Mapping[Any, dict[str, Any]], dict[str, Any]]:
    """The schema of each type of a body, and the definitions that they refer to."""
    requests = {operation.request for operation in operations if operation.request}
    responses = {
        kind
        for operation in operations
        for kind in (*operation.responses.values(), *operation.negative.values(), Problem)
        if kind not in (str, bytes)
    }
    inputs = [(kind, "validation", TypeAdapter(kind)) for kind in requests]
    inputs += [(kind, "serialization", TypeAdapter(kind)) for kind in responses]
    inputs.sort(key=lambda each: each[0].__name__)
    found, document = TypeAdapter.json_schemas(inputs, ref_template=REFERENCE)  # type: ignore[arg-type]
    return {kind: schema for (kind, _), schema in found.items()}, document.get("$defs", {})


def _describe(operation: Operation, schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [
            {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in operation.parameters.items()
        ]
        + ([] if operation.lasting else HEADERS),
        "responses": _responses(operation, schemas),
    }
    if operation.request:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[operation.request]}},
        }
    return described


def _responses(operation: Operation, schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    contents = {media: {"schema": _schema(kind, schemas)} for media, kind in operation.responses.items()}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": contents, "headers": ECHO}}
    for status, text in _problems(operation).items():
        content = {problem.MEDIA_TYPE: {"schema": schemas[Problem]}}
        responses[str(status)] = {"description": text, "content": content, "headers": ECHO}
    for status, kind in operation.negative.items():
        media = TEXT if kind is str else "application/json"
        negative = responses.setdefault(str(status), {"description": "No.", "content": {}, "headers": ECHO})
        negative["content"][media] = {"schema": _schema(kind, schemas)}
    return responses


def _problems(operation: Operation) -> dict[int, str]:
    if operation.lasting:
        return {500: MISTAKES[500]}
    return MISTAKES | {503: UNAVAILABLE} | (OF_BODIES if operation.request else {504: OF_BODIES[504]})


def _schema(kind: Any, schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    if kind is bytes:
        return {}
    return {"type": "string"} if kind is str else schemas[kind]
