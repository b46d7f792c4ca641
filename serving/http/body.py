"""Bodies of requests: JSON to the values that an operation takes, and rows of inputs to messages.

Parsing holds Python's lock, so the values are counted first.
"""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from protos import sidecast_pb2 as pb
from serving.errors import InvalidInput
from serving.http.errors import UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)

JSON = "application/json"
MAX_MARKS = 2**20
"""Commas, colons and brackets in a body. Parsing so many values takes about 50 ms."""
PAUSE_ROWS = 256
"""Rows that are read before other calls go on."""
SHOWN = 80
"""Characters of a caller's name in an error."""

Name = Annotated[str, Field(max_length=1000)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Version = Annotated[int, Field(ge=1, le=2**63 - 1)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]
Priority = Annotated[int, Field(ge=0, le=4)]

IMAGE_SCHEMA = {
    "type": "object",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["b64"],
    "additionalProperties": False,
    "description": "An image: the bytes of a JPEG, PNG or WebP file in base64.",
}
ROW_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "description": "The value of the task's only field."},
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [{"type": "string"}, IMAGE_SCHEMA]},
            "description": "A text for each field of the task's template, and an image for each of its images.",
        },
    ]
}
Row = Annotated[Any, WithJsonSchema(ROW_SCHEMA)]


class Body(BaseModel):
    """The body of a request. What it does not know is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


def check_headers(headers: dict[str, str], *, binary: bool) -> None:
    """Check that the body is JSON by its headers; without a type it is.

    Args:
        binary: binary tensors may follow the JSON.

    Raises:
        UnsupportedMediaType
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType("Content-Encoding", encoding, "the body without compression")
    kind = headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind == JSON or (kind.startswith("application/") and kind.endswith("+json")):
        return
    if not (binary and kind == "application/octet-stream"):
        raise UnsupportedMediaType("Content-Type", kind, JSON)


def parse(data: bytes, model: type[Model]) -> Model:
    """The body as `model`.

    Raises:
        InvalidInput: no JSON, too many values, or a value that breaks a rule of the model.
    """
    if len(data) > MAX_MARKS and sum(map(data.count, (b",", b":", b"[", b"{"))) > MAX_MARKS:
        raise InvalidInput("body", f"holds more than {MAX_MARKS:,} values; send it in parts")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    raise InvalidInput(_path(fault["loc"]), fault["msg"].removeprefix("Value error, "))


def _path(location: Sequence[str | int]) -> str:
    """`inputs[3].name` for ("inputs", 3, "name")."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step[:SHOWN]}" if path else step[:SHOWN]
    return path or "body"


async def read_inputs(inputs: Sequence[Any], where: str = "inputs") -> list[pb.Row]:
    """Rows of a request as messages; other calls go on meanwhile. Raises InvalidInput."""
    rows = []
    for index, value in enumerate(inputs):
        if index % PAUSE_ROWS == PAUSE_ROWS - 1:
            await asyncio.sleep(0)
        rows.append(read_input(value, f"{where}[{index}]"))
    return rows


def read_input(value: Any, where: str) -> pb.Row:
    """One row: a text, or an object of texts and images. Raises InvalidInput."""
    if isinstance(value, str):
        return pb.Row(text=value)
    if not isinstance(value, dict) or not value:
        raise InvalidInput(where, "must be a text, or an object with a text or an image for each field")
    row = pb.Row()
    for name, content in value.items():
        if isinstance(content, str):
            row.fields[name] = content
        elif isinstance(content, dict) and content.keys() == {"b64"}:
            row.images[name] = decode_base64(content["b64"], f"{where}.{name[:SHOWN]}.b64")
        else:
            raise InvalidInput(f"{where}.{name[:SHOWN]}", 'must be a text, or {"b64": "..."} for an image')
    return row


def decode_base64(text: Any, where: str) -> bytes:
    """The bytes of an image. Raises InvalidInput."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        pass
    raise InvalidInput(where, "must be base64: the characters A-Z a-z 0-9 + / and = at the end")
