"""`/v2`: the Open Inference Protocol over REST, by the servicer that answers it over gRPC.

Tensors are JSON, or follow it as bytes as in Triton's binary extension. JSON has no bytes: an element of a BYTES tensor
is a text, or `{"b64": "..."}`; where the parameter `content_type` of a tensor is "base64", as in MLServer, each element
is base64.
"""

from collections.abc import Iterator, Mapping
from http import HTTPMethod
from math import prod
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import to_json
from starlette.responses import Response
from typing_extensions import TypedDict

from protos import open_inference_pb2 as pb
from serving.api.open_inference.tensors import pack, split_raw
from serving.api.permissions import GROUP
from serving.errors import InvalidInput
from serving.http.body import IMAGE_SCHEMA, SHOWN, Body, Int64, Name, decode_base64
from serving.http.call import HttpCall
from serving.http.operation import Operation, Reply
from serving.http.replies import json_bytes, json_reply, with_member, write_list
from serving.http.services import Services

JSON = "application/json"
OCTETS = "application/octet-stream"
HEADER_LENGTH = "inference-header-content-length"
"""Header with the bytes of the JSON where binary tensors follow it."""
EXTENSIONS = ("binary_tensor_data", "parameters", "schedule_policy")
MAX_NESTING = 8
"""Dimensions of a tensor's nested lists."""


def _check_parameter(value: Any) -> Any:
    if isinstance(value, bool | str | float) or (isinstance(value, int) and -(2**63) <= value < 2**64):
        return value
    raise ValueError("must be a boolean, a number or a text")


Parameter = Annotated[Any, AfterValidator(_check_parameter), WithJsonSchema({"type": ["boolean", "number", "string"]})]
Parameters = dict[str, Parameter]
Element = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["string", "number", "boolean"]},
                {"type": "array", "items": {}},
                IMAGE_SCHEMA,
            ]
        }
    ),
]


class _Lenient(Body):
    """What it does not know is ignored, as the protocol wants it."""

    model_config = ConfigDict(extra="ignore")


class InputTensor(_Lenient):
    """One input of a request. A task reads BYTES."""

    name: Name
    datatype: Name
    shape: Annotated[list[Int64], Field(max_length=MAX_NESTING)]
    parameters: Parameters = Field(default_factory=dict)
    data: list[Element] | None = None
    """The elements, flat or nested by rows. Not given where binary data follows the JSON."""


class OutputChoice(_Lenient):
    """One output that the caller asks for."""

    name: Name
    parameters: Parameters = Field(default_factory=dict)


class InferBody(_Lenient):
    """A request of ModelInfer."""

    id: Name = ""
    """Echoed."""
    parameters: Parameters = Field(default_factory=dict)
    """`timeout` in microseconds, `priority`, `route_key`, and settings of texts such as `num_beams`."""
    inputs: list[InputTensor]
    outputs: list[OutputChoice] = Field(default_factory=list)
    """None: all of them."""


class OutputTensor(TypedDict):
    """One output."""

    name: str
    datatype: str
    shape: list[int]
    parameters: NotRequired[dict[str, bool | int | float | str]]
    data: NotRequired[list[Any]]
    """Missing where it follows the JSON as bytes."""


class Inferred(TypedDict):
    """The response of ModelInfer."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    parameters: dict[str, bool | int | float | str]
    outputs: list[OutputTensor]


class TensorMetadata(TypedDict):
    """A tensor of a task; -1 is any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    """The tensors of a task, its versions and settings."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, bool | int | float | str]


class ServerMetadata(TypedDict):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Live(TypedDict):
    """The process answers."""

    live: bool


class Ready(TypedDict):
    """Whether the server answers requests."""

    ready: bool


class ModelReady(TypedDict):
    """Whether a task can be asked here."""

    name: str
    ready: bool


class OpenInference:
    """The operations of the protocol."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> Iterator[Operation]:
        """Those of the protocol; those on models with and without a version in the path."""
        model = {"model": "A task."}
        versioned = model | {"version": "A version's number, or an alias."}
        yield from self._on_model("/v2/models/{model}", model, "")
        yield from self._on_model("/v2/models/{model}/versions/{version}", versioned, "Version")
        yield from self._on_model("/v2/models/group/{group}", {"group": "A group."}, "Group")
        yield _get("serverMetadata", "/v2", "Describe the server", self.server_metadata, ServerMetadata)
        yield _get("serverLive", "/v2/health/live", "Say that the process answers", self.live, Live, lasting=True)
        yield _get(
            "serverReady",
            "/v2/health/ready",
            "Say whether the server answers requests",
            self.ready,
            Ready,
            negative={503: Ready},
            lasting=True,
        )

    def _on_model(self, path: str, parameters: Mapping[str, str], suffix: str) -> Iterator[Operation]:
        yield Operation(
            name=f"infer{suffix}",
            method=HTTPMethod.POST,
            path=f"{path}/infer",
            summary="Answer rows of one task as tensors",
            handler=self.infer,
            request=InferBody,
            responses={JSON: Inferred, OCTETS: bytes},
            binary=True,
            counted=True,
            tag="Open Inference Protocol",
            parameters=parameters,
        )
        yield _get(
            f"modelMetadata{suffix}", path, "Describe a task", self.model_metadata, ModelMetadata, parameters=parameters
        )
        yield _get(
            f"modelReady{suffix}",
            f"{path}/ready",
            "Say whether a task can be asked here",
            self.model_ready,
            ModelReady,
            negative={404: ModelReady},
            parameters=parameters,
        )

    async def infer(self, call: HttpCall, body: InferBody) -> Reply:
        """Answer rows of one task."""
        request = read_request(call, body)
        if "timeout" in request.parameters and request.parameters["timeout"].int64_param > 0:
            call.limit(request.parameters["timeout"].int64_param / 1e6)
        response = await self._services.infer(call, request)
        default = body.parameters.get("binary_data_output") is True
        wanted = {output.name: output.parameters.get("binary_data", default) is True for output in body.outputs}
        return await write_response(
            response, {output.name for output in response.outputs if wanted.get(output.name, default)}
        )

    async def model_metadata(self, call: HttpCall) -> Reply:
        """Describe a task's tensors."""
        request = pb.ModelMetadataRequest(name=_model_of(call), version=call.parameters.get("version", ""))
        found = await self._services.model_metadata(call, request)
        return json_reply(
            ModelMetadata(
                name=found.name,
                versions=list(found.versions),
                platform=found.platform,
                inputs=[_describe_tensor(tensor) for tensor in found.inputs],
                outputs=[_describe_tensor(tensor) for tensor in found.outputs],
                parameters=_describe_parameters(found.parameters),
            )
        )

    async def model_ready(self, call: HttpCall) -> Reply:
        """Say whether a task can be asked here."""
        name = _model_of(call)
        request = pb.ModelReadyRequest(name=name, version=call.parameters.get("version", ""))
        ready = await self._services.model_ready(call, request)
        return json_reply(ModelReady(name=name, ready=ready), 200 if ready else 404)

    async def server_metadata(self, call: HttpCall) -> Reply:
        """Describe the server."""
        found = await self._services.server_metadata(call)
        return json_reply(ServerMetadata(name=found.name, version=found.version, extensions=list(EXTENSIONS)))

    async def live(self, call: HttpCall) -> Reply:
        """Say that the process answers."""
        return json_reply(Live(live=True))

    async def ready(self, call: HttpCall) -> Reply:
        """Say whether the server answers requests."""
        ready = await self._services.server_ready(call)
        return json_reply(Ready(ready=ready), 200 if ready else 503)


def _model_of(call: HttpCall) -> str:
    """The model that the path names: a task, or `group/NAME`."""
    group = call.parameters.get("group")
    return call.parameters["model"] if group is None else GROUP + group


def _get(name: str, path: str, summary: str, handler: Any, response: Any, **more: Any) -> Operation:
    return Operation(
        name=name,
        method=HTTPMethod.GET,
        path=path,
        summary=summary,
        handler=handler,
        responses={JSON: response},
        tag="Open Inference Protocol",
        **more,
    )


def read_request(call: HttpCall, body: InferBody) -> pb.ModelInferRequest:
    """The request as gRPC has it, with typed elements. Raises InvalidInput."""
    request = pb.ModelInferRequest(
        model_name=_model_of(call), model_version=call.parameters.get("version", ""), id=body.id
    )
    _read_parameters(body.parameters, request.parameters)
    for output in body.outputs:
        _read_parameters(output.parameters, request.outputs.add(name=output.name).parameters)
    at = 0
    for tensor in body.inputs:
        message = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _read_parameters(tensor.parameters, message.parameters)
        size = tensor.parameters.get("binary_data_size")
        if size is not None:
            elements = _cut(call.attachment, at, size, tensor)
            at += len(elements)
            if tensor.datatype == "BYTES":
                rows = min(prod(tensor.shape), len(elements))  # each element has four bytes or more
                message.contents.bytes_contents.extend(split_raw(tensor.name, elements, max(rows, 0)))
        elif tensor.datatype == "BYTES" and tensor.data is not None:
            message.contents.bytes_contents.extend(_read_elements(tensor))
    if at != len(call.attachment):
        raise InvalidInput("inputs", f"{len(call.attachment) - at} bytes after the JSON belong to no tensor")
    return request


def _cut(data: bytes, at: int, size: Any, tensor: InputTensor) -> bytes:
    where = f"inputs.{tensor.name[:SHOWN]}"
    if tensor.data is not None:
        raise InvalidInput(where, "has data beside binary_data_size; send one of them")
    if type(size) is not int or not 0 <= size <= len(data) - at:
        fault = f"binary_data_size must be a number of the {len(data) - at} bytes that follow, got {str(size)[:SHOWN]}"
        raise InvalidInput(where, fault)
    return data[at : at + size]


def _read_elements(tensor: InputTensor) -> Iterator[bytes]:
    where = f"inputs.{tensor.name[:SHOWN]}"
    is_base64 = tensor.parameters.get("content_type") == "base64"
    for element in _flat(tensor.data or [], where):
        if isinstance(element, dict) and element.keys() == {"b64"}:
            yield decode_base64(element["b64"], where)
        elif not isinstance(element, str):
            raise InvalidInput(where, 'an element of BYTES must be a text or {"b64": "..."}')
        elif is_base64:
            yield decode_base64(element, where)
        else:
            yield element.encode()


def _flat(values: list[Any], where: str, depth: int = 1) -> Iterator[Any]:
    if depth > MAX_NESTING:
        raise InvalidInput(where, f"has lists more than {MAX_NESTING} deep")
    for value in values:
        if isinstance(value, list):
            yield from _flat(value, where, depth + 1)
        else:
            yield value


def _read_parameters(parameters: Mapping[str, Any], messages: Any) -> None:
    for name, value in parameters.items():
        match value:
            case bool():
                messages[name].bool_param = value
            case int() if value >= 2**63:
                messages[name].uint64_param = value
            case int():
                messages[name].int64_param = value
            case float():
                messages[name].double_param = value
            case _:
                messages[name].string_param = value


def _describe_parameters(messages: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    return {
        name: getattr(message, message.WhichOneof("parameter_choice") or "string_param")
        for name, message in sorted(messages.items())
    }


def _describe_tensor(tensor: pb.ModelMetadataResponse.TensorMetadata) -> TensorMetadata:
    return TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape))


async def write_response(response: pb.ModelInferResponse, binary: set[str]) -> Response:
    """The response as JSON, and the outputs of `binary` as bytes after it."""
    outputs = []
    attachments = []
    for tensor in response.outputs:
        contents = tensor.contents
        values = (
            [element.decode() for element in contents.bytes_contents]
            if tensor.datatype == "BYTES"
            else contents.fp32_contents
        )
        head: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        parameters = _describe_parameters(tensor.parameters)
        if tensor.name in binary:
            attachments.append(pack(tensor.datatype, values))
            parameters["binary_data_size"] = len(attachments[-1])
        if parameters:
            head["parameters"] = parameters
        outputs.append(to_json(head) if tensor.name in binary else with_member(head, "data", await write_list(values)))
    document = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        document["id"] = response.id
    document["parameters"] = _describe_parameters(response.parameters)  # type: ignore[assignment]
    data = with_member(document, "outputs", b"[" + b",".join(outputs) + b"]")
    if not attachments:
        return json_bytes(data)
    headers = {HEADER_LENGTH: str(len(data))}
    return Response(b"".join((data, *attachments)), headers=headers, media_type=OCTETS)
