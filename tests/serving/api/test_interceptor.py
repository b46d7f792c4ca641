"""What the interceptor does with requests: bytes that are no message, requests that are refused, streams that end."""

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.api.drain import Drain
from serving.api.inbox import SMALL_BYTES
from serving.api.interceptor import path_of
from serving.api.services import SERVICES
from serving.client.errors import OverloadedError, from_status
from serving.errors import Draining, ServingError
from side_registry import RegistryError
from tests.serving.api_kit import SST2, Parlour
from tests.sidecast.cli_kit import wait_until

REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
METHODS = [method for service in (*SERVICES, REFLECTION) for method in service.methods]


@pytest.fixture(scope="module")
def channel(parlour: Parlour) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(parlour.address) as opened:
        yield opened


@pytest.mark.parametrize("method", METHODS, ids=path_of)
def test_bytes_that_are_no_message_are_the_callers_mistake_in_every_method(
    channel: grpc.Channel, method: MethodDescriptor, caplog: pytest.LogCaptureFixture
) -> None:
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(path_of(method))
    with caplog.at_level(logging.INFO), pytest.raises(grpc.RpcError) as caught:
        list(call(iter([b"\xff"]) if method.client_streaming else b"\xff", timeout=10))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert from_status(rpc_status.from_call(error)).reason == "INVALID_INPUT"
    assert not caplog.records


ROW = [pb.Row(text="x" * 1000)]
TOO_MANY_ROWS = pb.PredictRequest(task="sst2", rows=[pb.Row()] * 9000)


def infer(task: str, rows: int) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=task)
    tensor = request.inputs.add(name="sentence", datatype="BYTES", shape=[rows])
    tensor.contents.bytes_contents.append(b"x")
    return request


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "unknown task": lambda native, _: native.Predict(pb.PredictRequest(task="nope", rows=ROW)),
    "empty row": lambda native, _: native.Predict(pb.PredictRequest(task="sst2", rows=[pb.Row()])),
    "empty text": lambda native, _: native.Predict(pb.PredictRequest(task="sst2", rows=[pb.Row(text=" ")])),
    "too many rows": lambda native, _: native.Predict(TOO_MANY_ROWS),
    "unknown tasks": lambda native, _: native.PredictTasks(
        pb.PredictTasksRequest(tasks=[pb.TaskRef(task="nope")] * 3, rows=ROW)
    ),
    "too many tasks": lambda native, _: native.PredictTasks(
        pb.PredictTasksRequest(tasks=[pb.TaskRef(task="sst2")] * 300, rows=ROW)
    ),
    "a stream of no task": lambda native, _: native.Generate(pb.GenerateRequest(task="nope", row=ROW[0])),
    "a stream of an empty text": lambda native, _: native.Generate(
        pb.GenerateRequest(task="titles", row=pb.Row(text=" "))
    ),
    "unknown model": lambda _, oip: oip.ModelInfer(infer("nope", 1)),
    "wrong shape": lambda _, oip: oip.ModelInfer(infer("sst2", 3)),
    "a stream of wrong requests": lambda _, oip: oip.ModelStreamInfer(iter([infer("nope", 1), infer("sst2", 3)])),
}
KEPT = (
    pb.PredictRequest, pb.PredictTasksRequest, pb.GenerateRequest, oip.ModelInferRequest, pb.TaskRef,
)  # fmt: skip
"""What the server must not keep of a refused request."""


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_a_refused_request_is_freed_at_once(
    channel: grpc.Channel, parlour: Parlour, refused: Callable[[Any, Any], Any]
) -> None:
    native = sidecast_pb2_grpc.SidecastStub(channel)
    open_inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

    def call() -> None:
        try:
            response: Any = refused(native, open_inference)
            if hasattr(response, "__next__"):
                list(response)
        except grpc.RpcError:
            pass

    call()
    gc.collect()
    gc.disable()
    try:
        before = _kept()
        for _ in range(20):
            call()
        wait_until(lambda: parlour.server.drain.in_flight == 0, 10)
        wait_until(lambda: sum((_kept() - before).values()) < 10, 10)
    finally:
        gc.enable()


def _kept() -> Counter[str]:
    """How many requests and errors there are."""
    found: Counter[str] = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if kind in KEPT or isinstance(thing, (ServingError, RegistryError)):
            found[kind.__name__] += 1
    return found


def test_requests_past_the_bytes_in_flight_are_refused_with_their_reason(tmp_path: Path) -> None:
    large = pb.PredictRequest(task="sst2", rows=[pb.Row(text="x" * SMALL_BYTES * 2)])
    limit = large.ByteSize() + 1
    with (
        Parlour(tmp_path, [SST2], max_in_flight_bytes=limit).open() as parlour,
        grpc.insecure_channel(parlour.address) as channel,
    ):
        native: Any = sidecast_pb2_grpc.SidecastStub(channel)
        parlour.service.slow = 60
        first: Future[Any] = native.Predict.future(large)
        wait_until(lambda: parlour.server.drain.in_flight == 1, 10)
        with pytest.raises(grpc.RpcError) as caught:
            native.Predict(large)
        error: Any = caught.value
        refusal = from_status(rpc_status.from_call(error))
        assert isinstance(refusal, OverloadedError)
        assert (refusal.reason, refusal.retry_after_s) == ("TOO_MANY_BYTES", 1.0)
        parlour.service.slow = 0
        assert first.result(10)
        assert native.Predict(large)
        labels = {"task": "unknown", "version": "unknown", "code": "RESOURCE_EXHAUSTED"}
        assert parlour.server.metrics.registry.get_sample_value("sidecast_requests_total", labels) == 1


async def test_watches_end_when_the_server_stops_but_calls_are_completed() -> None:
    drain = Drain()
    waiting = asyncio.create_task(drain.pause(60, drain.left))
    reading = asyncio.create_task(_read(drain))
    between = drain.left
    await asyncio.sleep(0)
    drain.leave()
    for task in (waiting, reading):
        with pytest.raises(Draining):
            await task
    with pytest.raises(Draining):  # it did not wait when the server left
        await drain.pause(60, between)
    with drain.call():
        await drain.pause(0.001, drain.left)  # what begins after it is served
    again = asyncio.create_task(_read(drain))
    await asyncio.sleep(0.01)
    assert not again.done()
    drain.begin()
    drain.leave()
    with pytest.raises(Draining):
        await again
    with pytest.raises(Draining):
        await drain.pause(60)


async def _read(drain: Drain) -> None:
    _ = [request async for request in drain.arriving(_silent(), patience_s=0)]


async def _silent() -> AsyncIterator[object]:
    await asyncio.Event().wait()
    yield
