"""Calls that no client makes, by the hundred: mutated messages, odd tensors, open streams, names that do not exist.

Whatever comes, the caller gets a status that blames the call, the log stays empty, and the server keeps nothing.
"""

import contextlib
import logging
import random
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection_pb2 import DESCRIPTOR as REFLECTION_FILE
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.api.interceptor import path_of
from serving.api.services import ADMIN, HEALTH, NATIVE, OPEN_INFERENCE, SERVICES
from side_registry import MANIFEST
from tests.serving.api_kit import SPECS, SST2, VQA, Parlour
from tests.sidecast.cli_kit import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

REFLECTION = REFLECTION_FILE.services_by_name["ServerReflection"]
METHODS = [method for service in (*SERVICES, REFLECTION) for method in service.methods]
LASTING_S = 0.2
"""Time that a call gets that may last for ever."""
LASTING = ("Watch", "AwaitGeneration", "ModelStreamInfer")
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)
"""Codes that blame the server."""
MANY = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

TENSOR = oip.ModelInferRequest.InferInputTensor
CHANGE = pb.Change(author="me", message="why")
VALID: dict[str, Message] = {
    "Predict": pb.PredictRequest(
        task="vqa",
        rows=[pb.Row(fields={"question": text}, images={"image": b"\xff\xd8"}) for text in ("a", "b")],
        priority=2,
    ),
    "PredictTasks": pb.PredictTasksRequest(
        tasks=[pb.TaskRef(task="vqa", version=1)], rows=[pb.Row(prompt="a", images={"image": b"\0"})]
    ),
    "Generate": pb.GenerateRequest(
        task="titles", row=pb.Row(text="a b"), generation=pb.Generation(do_sample=True, seed=1)
    ),
    "ModelInfer": oip.ModelInferRequest(
        model_name="sst2",
        inputs=[TENSOR(name="sentence", datatype="BYTES", shape=[1], contents={"bytes_contents": [b"a"]})],
        parameters={"priority": oip.InferParameter(int64_param=2)},
    ),
    "Publish": pb.PublishRequest(header=pb.PublishRequest.Header(manifest=b'{"task": "sst2"}', change=CHANGE)),
    "SetRoute": pb.SetRouteRequest(task="sst2", alias="canary", route=pb.Route(version=1), change=CHANGE),
    "Check": HealthCheckRequest(service="sst2"),
    "ServerReflectionInfo": ServerReflectionRequest(file_containing_symbol=NATIVE.full_name),
}
"""Requests of methods that have much to get wrong. Others get one of a few fields."""


def valid(method: MethodDescriptor) -> bytes:
    """The bytes of a request that the method takes, or would if its names existed."""
    if method.name in VALID:
        return VALID[method.name].SerializeToString()
    return b"\x0a\x04sst2\x10\x01"


def mutated(data: bytes, how: random.Random) -> bytes:
    """The bytes with a few of them changed, cut, repeated or made up."""
    changed = bytearray(data)
    for _ in range(how.randint(1, 4)):
        at = how.randrange(len(changed) + 1)
        end = at + how.randint(1, 8)
        change = how.randrange(4)
        if change == 0:
            changed[at:end] = b""
        elif change == 1:
            changed[at:at] = how.randbytes(how.randint(1, 8))
        elif change == 2:
            changed[at:at] = changed[at:end] * how.randint(1, 50)
        else:
            changed[at : at + 1] = bytes([how.randrange(256)])
    return bytes(changed)


@pytest.fixture(scope="module")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    with Parlour(tmp_path_factory.mktemp("parlour"), (*SPECS, VQA)).open() as opened:
        yield opened


@pytest.fixture
def channel(parlour: Parlour) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(parlour.address, [("grpc.use_local_subchannel_pool", 1)]) as opened:
        yield opened


def kind_of(method: MethodDescriptor) -> str:
    """gRPC's name of a method's kind, such as unary_stream."""
    return f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"


def code_of(channel: grpc.Channel, method: MethodDescriptor, data: bytes) -> grpc.StatusCode:
    """The code of a call with these bytes."""
    call = getattr(channel, kind_of(method))(path_of(method))
    timeout = LASTING_S if method.name in LASTING else 30
    try:
        responses = call(iter([data]) if method.client_streaming else data, timeout=timeout)
        if method.server_streaming:
            for _ in responses:
                pass
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", [method for method in METHODS if method.name in VALID], ids=path_of)
def test_what_is_mutated_was_right(channel: grpc.Channel, method: MethodDescriptor) -> None:
    right = grpc.StatusCode.INVALID_ARGUMENT if method.name == "Publish" else grpc.StatusCode.OK  # it lacks its files
    assert code_of(channel, method, valid(method)) is right


@MANY
@given(method=st.sampled_from(METHODS), seed=st.integers(0, 2**32))
def test_mutated_calls_of_every_method_blame_the_call(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture, method: MethodDescriptor, seed: int
) -> None:
    data = mutated(valid(method), random.Random(seed))
    with caplog.at_level(logging.ERROR):
        code = code_of(channel, method, data)
    assert code not in FAULTS
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


TENSORS = st.builds(
    TENSOR,
    name=st.sampled_from(["sentence", "text", "", "sentence1", "\0"]),
    datatype=st.sampled_from(["BYTES", "FP32", "INT64", "bytes", ""]),
    shape=st.lists(st.sampled_from([1, 2, 0, -1, 2**62, -(2**63)]), max_size=3),
    contents=st.sampled_from(
        [None, {"bytes_contents": [b"a"]}, {"bytes_contents": [b"a", b"\xff"]}, {"fp32_contents": [float("nan")]}]
    ),
    parameters=st.sampled_from(
        [{}, {"binary_data_size": {"int64_param": -1}}, {"shared_memory_offset": {"uint64_param": 2**64 - 1}}]
    ),
)
RAW = st.lists(st.sampled_from([b"", b"\1\0\0\0a", b"\xff\xff\xff\xff", b"\2\0\0\0a", b"\1\0\0\0a" * 2]), max_size=3)


@MANY
@given(inputs=st.lists(TENSORS, max_size=3), raw=RAW, version=st.sampled_from(["", "1", "-1", "9" * 30, "x", "²"]))
def test_odd_tensors_blame_the_call(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture, inputs: list[Any], raw: list[bytes], version: str
) -> None:
    request = oip.ModelInferRequest(model_name="sst2", model_version=version, inputs=inputs, raw_input_contents=raw)
    with caplog.at_level(logging.ERROR):
        code = code_of(channel, OPEN_INFERENCE.methods_by_name["ModelInfer"], request.SerializeToString())
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert not caplog.records


STREAMS = 300


@pytest.mark.parametrize(
    ("service", "name"),
    [
        (NATIVE, "Generate"),
        (OPEN_INFERENCE, "ModelStreamInfer"),
        (HEALTH, "Watch"),
        (ADMIN, "Watch"),
        (ADMIN, "Publish"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_hundreds_of_open_streams_leave_nothing_behind(
    parlour: Parlour, channel: grpc.Channel, service: Any, name: str
) -> None:
    """Others are answered beside them, and all is free once they are cancelled."""
    method = service.methods_by_name[name]
    make = getattr(channel, kind_of(method))(path_of(method))
    manifest = (parlour.run(SST2, 7) / MANIFEST).read_bytes()
    data = {
        "Generate": VALID["Generate"].SerializeToString(),
        "ModelStreamInfer": VALID["ModelInfer"].SerializeToString(),
        "Publish": pb.PublishRequest(header=pb.PublishRequest.Header(manifest=manifest)).SerializeToString(),
    }.get(name, b"")
    goes_on = threading.Event()

    def upload() -> Iterator[bytes]:
        yield data
        goes_on.wait()

    value_of = parlour.server.metrics.registry.get_sample_value
    with contextlib.ExitStack() as stack:
        parlour.service.slow = 30.0 if name == "Generate" else 0.0
        stack.callback(setattr, parlour.service, "slow", 0.0)
        stack.callback(goes_on.set)
        if name == "Publish":
            calls = [make.future(upload()) for _ in range(STREAMS)]
        else:
            calls = [make(upload() if method.client_streaming else data) for _ in range(STREAMS)]
        for call in calls:
            stack.callback(call.cancel)
        if name in ("Generate", "Publish"):  # these have nothing to say yet
            wait_until(lambda: value_of("sidecast_in_flight_calls") == STREAMS)
        else:
            for call in calls:
                next(call)
        metadata = oip.ModelMetadataRequest(name="sst2")
        answered = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelMetadata(metadata, timeout=30)
        assert answered.name == "sst2"
    wait_until(lambda: value_of("sidecast_in_flight_calls") == value_of("sidecast_in_flight_bytes") == 0)


def test_names_that_do_not_exist_become_no_series(parlour: Parlour, channel: grpc.Channel) -> None:
    native = sidecast_pb2_grpc.SidecastStub(channel)
    open_inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    names = random.Random(1)

    def call(name: str) -> None:
        with contextlib.suppress(grpc.RpcError):
            native.Predict(pb.PredictRequest(task=name, rows=[pb.Row(text="a")]))
        with contextlib.suppress(grpc.RpcError):
            native.Predict(pb.PredictRequest(task="sst2", alias=name, rows=[pb.Row(text="a")]))
        with contextlib.suppress(grpc.RpcError):
            list(native.Generate(pb.GenerateRequest(task=name, row=pb.Row(text="a"))))
        with contextlib.suppress(grpc.RpcError):
            open_inference.ModelInfer(oip.ModelInferRequest(model_name=name))
        tasks = [pb.TaskRef(task=f"{name}{number}") for number in range(50)]
        native.PredictTasks(pb.PredictTasksRequest(tasks=tasks, rows=[pb.Row(text="a")]))

    call("first")
    before = generate_latest(parlour.server.metrics.registry).count(b"\n")
    for _ in range(100):
        call("".join(names.choices('abc"\n{}=\\é/.-_0', k=names.randint(1, 60))))
    assert generate_latest(parlour.server.metrics.registry).count(b"\n") == before
