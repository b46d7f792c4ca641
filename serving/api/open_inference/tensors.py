"""Open Inference tensors to rows, and answers to tensors: pure functions of messages and a task's spec.

A request has one BYTES tensor per field of the task's template, or instead of them a single `text` that is the whole
prompt (unless the task has a field of that name). Each image has a BYTES tensor too, whose elements are image files.
Other tensors are ignored. Elements come raw or typed, never both. Faults name the tensor.
"""

import asyncio
import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from ladder.answers import Answer
from protos import open_inference_pb2 as pb
from serving.errors import InvalidInput, TooManyRows
from serving.pipeline import InputRow, Prompt
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS, AnswerColumn

WHOLE_PROMPT = "text"
TYPED = tuple(field.name for field in pb.InferTensorContents.DESCRIPTOR.fields)
SHARED_MEMORY = "shared_memory_region"
TRUNCATED_ROWS = "truncated_rows"
"""Parameter of every output tensor: the rows whose texts are cut, as JSON. It is missing where none is."""
SHOWN = 10
"""Names in a message."""
MAX_OUTPUTS = 64
"""Outputs that one request names."""
MAX_IGNORED = 64
"""Most inputs of a request beyond those that its task reads."""

Tensor = pb.ModelInferRequest.InferInputTensor
Value = TypeVar("Value", str, bytes)

DATATYPES: Mapping[str, Literal["BYTES", "FP32"]] = {"string": "BYTES", "float32": "FP32", "spans": "BYTES"}
"""By the type of an answer's column. The spans of a row are one element: a JSON list of objects."""

CONFIG_TYPES: Mapping[str, Literal["TYPE_STRING", "TYPE_FP32"]] = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}


class Inputs(Protocol):
    """What the inputs of a request are checked against: a task's spec, or a group of tasks."""

    @property
    def name(self) -> str:
        """Of the task or group."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of its texts."""
        ...

    @property
    def images(self) -> tuple[str, ...]:
        """Names of its images."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Both."""
        ...

    @property
    def max_rows(self) -> int:
        """Most rows of a request."""
        ...


def describe_inputs(spec: TaskSpec | Inputs) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    """The input tensors of a task: one for each field of its template, then one for each image."""
    return [pb.ModelMetadataResponse.TensorMetadata(name=name, datatype="BYTES", shape=[-1]) for name in spec.inputs]


def describe_outputs(spec: TaskSpec) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    """The output tensors of a task, by its kind."""
    return [describe_output(column, spec, column.name) for column in KINDS[spec.kind].columns]


def describe_output(column: AnswerColumn, spec: TaskSpec, name: str) -> pb.ModelMetadataResponse.TensorMetadata:
    """The output tensor of one column of a task's answers."""
    return pb.ModelMetadataResponse.TensorMetadata(
        name=name, datatype=DATATYPES[column.dtype], shape=_shape(column, -1, spec)
    )


def describe_config(spec: TaskSpec) -> pb.ModelConfig:
    """As Triton's tools ask for it: every tensor without its rows, a single element as [1]."""
    return pb.ModelConfig(
        name=spec.name,
        max_batch_size=spec.max_rows,
        input=[pb.ModelInput(name=name, data_type="TYPE_STRING", dims=[1]) for name in spec.inputs],
        output=[config_output(column, spec, column.name) for column in KINDS[spec.kind].columns],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=KINDS[spec.kind].makes_text),
    )


def config_output(column: AnswerColumn, spec: TaskSpec, name: str) -> pb.ModelOutput:
    """The output tensor of one column of a task's answers, as Triton's tools ask for it."""
    data_type = CONFIG_TYPES[DATATYPES[column.dtype]]
    return pb.ModelOutput(name=name, data_type=data_type, dims=_shape(column, 1, spec)[1:] or [1])


def takes_whole_prompt(spec: TaskSpec | Inputs) -> bool:
    """Whether the tensor `text` is a whole prompt: the task has no field or image of that name."""
    return WHOLE_PROMPT not in spec.inputs


def count_rows(request: pb.ModelInferRequest, spec: TaskSpec | Inputs) -> int:
    """How many rows a request has. Raises InvalidInput, TooManyRows: its inputs are not the task's."""
    return _count_rows([request.inputs[index] for index in _read_inputs(request.inputs, spec)], spec.max_rows)


async def read_rows(request: pb.ModelInferRequest, spec: TaskSpec | Inputs, rows: int) -> list[InputRow]:
    """The rows of a request that has so many; other calls go on between two of its tensors. Raises InvalidInput."""
    indices = _read_inputs(request.inputs, spec)
    texts: dict[str, list[str]] = {}
    images: dict[str, list[bytes]] = {}
    for index, read in zip(indices, _readers(request, indices, rows), strict=True):
        tensor = request.inputs[index]
        if tensor.name in spec.images:
            images[tensor.name] = list(read())
        else:
            texts[tensor.name] = _texts(tensor, read(), rows)
        await asyncio.sleep(0)
    pictures = _rows_by_name(images, rows)
    if texts.keys() == {WHOLE_PROMPT} and takes_whole_prompt(spec):
        return [Prompt(text, row) for text, row in zip(texts[WHOLE_PROMPT], pictures, strict=True)]
    return [{**fields, **row} for fields, row in zip(_rows_by_name(texts, rows), pictures, strict=True)]


def requested_outputs(request: pb.ModelInferRequest, spec: TaskSpec) -> list[str]:
    """The outputs to answer with, all where none is named.

    Raises:
        InvalidInput: one that tasks of this kind do not have.
    """
    known = [column.name for column in KINDS[spec.kind].columns]
    if len(request.outputs) > MAX_OUTPUTS:
        raise InvalidInput("outputs", f"{len(request.outputs)} in one request; use {_listed(known)}")
    names = [check_output(request, index, known, f"task {spec.name!r}") for index in range(len(request.outputs))]
    return list(dict.fromkeys(names)) or known


def check_output(request: pb.ModelInferRequest, index: int, known: Sequence[str], whose: str) -> str:
    """The name of a requested output. Raises InvalidInput: it is not among the known ones, or asks for more."""
    output = request.outputs[index]
    if output.name not in known:
        raise InvalidInput(f"outputs.{_short(output.name)}", f"is none of {whose}; use {_listed(known)}")
    if "classification" in output.parameters or SHARED_MEMORY in output.parameters:
        raise InvalidInput(f"outputs.{output.name}", "classification and shared memory are not supported")
    return output.name


def write_outputs(
    response: pb.ModelInferResponse, names: Sequence[str], answers: Sequence[Answer], spec: TaskSpec, *, raw: bool
) -> None:
    """Add the tensors of `names` to the response, their elements raw or typed as those of the request."""
    columns = {column.name: column for column in KINDS[spec.kind].columns}
    for name in names:
        column = columns[name]
        datatype = DATATYPES[column.dtype]
        tensor = response.outputs.add(name=name, datatype=datatype, shape=_shape(column, len(answers), spec))
        values: list[Any] = [getattr(answer, column.attribute) for answer in answers]
        if column.varies:
            values = [json.dumps(items, ensure_ascii=False) for items in values]
        elif column.dtype == "spans":
            values = [json.dumps([asdict(span) for span in spans], ensure_ascii=False) for spans in values]
        if column.is_list:
            values = [value for numbers in values for value in numbers]
        if raw:
            response.raw_output_contents.append(pack(datatype, values))
        elif datatype == "BYTES":
            tensor.contents.bytes_contents.extend(value.encode() for value in values)
        else:
            tensor.contents.fp32_contents.extend(values)


def flag_truncated(outputs: Iterable[pb.ModelInferResponse.InferOutputTensor], truncated: Sequence[bool]) -> None:
    """Say on these output tensors which rows' texts were cut."""
    rows = [row for row, is_cut in enumerate(truncated) if is_cut]
    if rows:
        for tensor in outputs:
            tensor.parameters[TRUNCATED_ROWS].string_param = json.dumps(rows)


def _rows_by_name(columns: Mapping[str, list[Value]], rows: int) -> list[dict[str, Value]]:
    return [{name: values[row] for name, values in columns.items()} for row in range(rows)]


def _read_inputs(inputs: Sequence[Tensor], spec: TaskSpec | Inputs) -> list[int]:
    """Indices of the tensors that the task reads, each of which is there once. Others are ignored."""
    most = len(spec.inputs) + MAX_IGNORED
    names = [tensor.name for tensor in inputs[: most + 1]]
    is_whole = takes_whole_prompt(spec) and [name for name in names if name not in spec.images] == [WHOLE_PROMPT]
    used = {WHOLE_PROMPT, *spec.images} if is_whole else set(spec.inputs)
    indices = [index for index, name in enumerate(names) if name in used]
    if len(names) <= most and sorted(names[index] for index in indices) == sorted(used):
        return indices
    got = _listed(names) or "none"
    if missing := [name for name in spec.images if name not in names]:
        got = f"{got}: {', '.join(missing)} is missing"
    raise InvalidInput("inputs", f"task {spec.name!r} takes {_needed(spec)}; got {got}")


def _needed(spec: TaskSpec | Inputs) -> str:
    """The inputs of a task, in words."""
    per_field = f"one BYTES tensor per field of its template ({', '.join(spec.fields)})" if spec.fields else ""
    per_image = f"one BYTES tensor per image ({', '.join(spec.images)})" if spec.images else ""
    whole = f", or a single '{WHOLE_PROMPT}' with the whole prompt" if takes_whole_prompt(spec) else ""
    if not per_image:
        return per_field + whole
    return f"{per_field}{whole}, and {per_image}" if per_field else per_image


def _count_rows(inputs: Sequence[Tensor], limit: int) -> int:
    rows = [_rows_of(tensor) for tensor in inputs]
    if max(rows) > limit:
        raise TooManyRows(max(rows), limit)
    for tensor, count in zip(inputs, rows, strict=True):
        if count != rows[0]:
            raise InvalidInput(
                f"inputs.{tensor.name}", f"has {count} rows, {inputs[0].name} has {rows[0]}; give both as many"
            )
    return rows[0]


def _rows_of(tensor: Tensor) -> int:
    where = f"inputs.{tensor.name}"
    if tensor.datatype != "BYTES":
        raise InvalidInput(where, f"datatype must be BYTES, got {_short(tensor.datatype) or 'none'}")
    if SHARED_MEMORY in tensor.parameters:
        raise InvalidInput(where, "shared memory is not supported; send the bytes")
    shape = list(tensor.shape)
    if not shape or shape[1:] not in ([], [1]) or shape[0] < 1:
        raise InvalidInput(where, f"shape must be [rows] or [rows, 1] with at least one row, got {shape[:8]}")
    return shape[0]


def _readers(request: pb.ModelInferRequest, indices: Sequence[int], rows: int) -> list[Callable[[], Sequence[bytes]]]:
    """For each input tensor with these indices, a function that reads its elements, raw or typed."""
    raw = request.raw_input_contents
    if not raw:
        return [partial(_typed, request.inputs[index], rows) for index in indices]
    if len(raw) != len(request.inputs):
        fault = f"has {len(raw)} items for {len(request.inputs)} inputs; give one per input, in their order"
        raise InvalidInput("raw_input_contents", fault)
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise InvalidInput(
                f"inputs.{tensor.name}", "has contents beside raw_input_contents; use one of them for all"
            )
    return [partial(split_raw, request.inputs[index].name, raw[index], rows) for index in indices]


def _typed(tensor: Tensor, rows: int) -> Sequence[bytes]:
    where = f"inputs.{tensor.name}"
    for field in TYPED:
        if field != "bytes_contents" and len(getattr(tensor.contents, field)):
            raise InvalidInput(where, f"has {field}; BYTES elements belong in bytes_contents")
    elements = tensor.contents.bytes_contents
    if len(elements) != rows:
        raise InvalidInput(where, f"has {len(elements)} elements, its shape says {rows}")
    return elements


def split_raw(name: str, data: bytes, rows: int) -> list[bytes]:
    """Cut a raw BYTES tensor into its elements. Each is its length in 4 bytes, little-endian, and then its bytes."""
    where, elements, at = f"inputs.{name}", [], 0
    for row in range(rows):
        if len(data) - at < 4:
            raise InvalidInput(where, f"its raw contents end in row {row}, before that row's 4-byte length")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if len(data) - at < size:
            raise InvalidInput(where, f"its raw contents end in row {row}, which has {len(data) - at} of {size} bytes")
        elements.append(data[at : at + size])
        at += size
    if at != len(data):
        raise InvalidInput(
            where, f"its raw contents go on for {len(data) - at} bytes after the {rows} rows of its shape"
        )
    return elements


def _texts(tensor: Tensor, elements: Sequence[bytes], rows: int) -> list[str]:
    texts = []
    for row in range(rows):
        try:
            texts.append(elements[row].decode())
        except UnicodeDecodeError as error:
            fault = f"row {row} is not UTF-8 (byte 0x{elements[row][error.start]:02x} at position {error.start})"
            raise InvalidInput(f"inputs.{tensor.name}", fault) from None
    return texts


def pack(datatype: str, values: Sequence[Any]) -> bytes:
    """The raw contents of a tensor, as `split_raw` reads them."""
    if datatype != "BYTES":
        return np.asarray(values, "<f4").tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(part for element in encoded for part in (struct.pack("<I", len(element)), element))


def _shape(column: AnswerColumn, rows: int, spec: TaskSpec) -> list[int]:
    return [rows, spec.outputs] if column.is_list else [rows]


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(_short(name) for name in list(names)[:SHOWN])


def _short(name: str) -> str:
    return name if len(name) <= 80 else name[:77] + "..."
