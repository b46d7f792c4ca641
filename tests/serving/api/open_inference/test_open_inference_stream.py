"""Streams of both services and both clients, priorities and tenants."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_status import rpc_status

from ladder.decoding.settings import Generation
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.api.open_inference.stream import FINAL
from serving.client import errors as errors
from serving.client.aio import AsyncClient
from serving.client.client import Client
from serving.client.errors import from_status
from serving.client.results import GeneratedText, Piece
from serving.config import RequestConfig
from serving.errors import SideFailed
from side_registry.specs.task import PRODUCTION
from tests.serving.api_kit import TITLES, Parlour

WORDS = ["TITLE:", " ONE", " TWO", " THREE"]


@pytest.fixture(scope="module")
def native(parlour: Parlour) -> Iterator[Any]:
    with grpc.insecure_channel(parlour.address) as channel:
        yield sidecast_pb2_grpc.SidecastStub(channel)


@pytest.fixture(scope="module")
def tensors(parlour: Parlour) -> Iterator[Any]:
    with grpc.insecure_channel(parlour.address) as channel:
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def client(parlour: Parlour) -> Iterator[Client]:
    with Client(parlour.address, retry=False) as client:
        yield client


@pytest.fixture
def slow(parlour: Parlour) -> Iterator[Parlour]:
    """Its pieces never end."""
    parlour.service.slow = 30.0
    parlour.service.cancelled.clear()
    yield parlour
    parlour.service.slow = 0.0


@pytest.fixture
def failing(parlour: Parlour) -> Iterator[Parlour]:
    parlour.service.trouble["titles"] = SideFailed("titles", 1, "NaN")
    yield parlour
    parlour.service.trouble.clear()


def ask(text: str = "one two three", task: str = "titles", **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(task=task, row=pb.Row(text=text), **fields)


def infer(id: str = "", text: str = "one two three", task: str = "titles", field: str = "body", rows: int = 1) -> Any:
    request = oip.ModelInferRequest(model_name=task, id=id)
    tensor = request.inputs.add(name=field, datatype="BYTES", shape=[rows])
    tensor.contents.bytes_contents.extend([text.encode()] * rows)
    return request


def texts(responses: list[Any]) -> list[str]:
    return [response.infer_response.outputs[0].contents.bytes_contents[0].decode() for response in responses]


def is_final(response: Any) -> bool:
    return response.infer_response.parameters[FINAL].bool_param


# --- the native service


def test_a_text_comes_in_pieces_and_last_as_a_whole(native: Any) -> None:
    *pieces, last = native.Generate(ask())
    assert [piece.text for piece in pieces] == WORDS
    assert [list(piece.tokens) for piece in pieces] == [[0], [1], [2], [3]]
    assert not any(piece.HasField("generated") for piece in pieces)
    whole = native.Predict(pb.PredictRequest(task="titles", rows=[pb.Row(text="one two three")]))
    assert last.generated == pb.Generated(
        task="titles",
        version=1,
        generation=4,
        alias=PRODUCTION,
        text=whole.answers[0].text.text,
        finish_reason="end",
        token_count=2,
    )


def test_a_stream_is_asked_for_like_a_prediction(native: Any, parlour: Parlour) -> None:
    how = pb.Generation(do_sample=True, seed=3, max_new_tokens=5)
    *_, last = native.Generate(ask(version=1, priority=2, generation=how, timeout=Duration(seconds=500)))
    answerer = parlour.service.answerers[-1]
    assert (last.generated.version, last.generated.alias) == (1, "")
    assert (answerer.max_new_tokens, answerer.generation) == (5, Generation(do_sample=True, seed=3))
    assert parlour.service.priorities[-1] == 2
    deadline = parlour.service.deadlines[-1]
    assert deadline is not None
    assert deadline - time.monotonic() == pytest.approx(500, abs=100)


@pytest.mark.parametrize(
    ("request_", "code", "reason", "says"),
    [
        (ask(task="titels"), "NOT_FOUND", "UNKNOWN_TASK", "did you mean 'titles'"),
        (ask(alias="x"), "NOT_FOUND", "UNKNOWN_ALIAS", "x"),
        (ask(task="sst2"), "INVALID_ARGUMENT", "INVALID_INPUT", "'sst2' is classification"),
        (pb.GenerateRequest(task="titles"), "INVALID_ARGUMENT", "INVALID_INPUT", "row: is empty"),
        (ask(timeout=Duration(seconds=-1)), "INVALID_ARGUMENT", "INVALID_INPUT", "timeout: must be above 0 s"),
        (ask(generation=pb.Generation(top_k=2)), "INVALID_ARGUMENT", "INVALID_INPUT", "generation.top_k"),
    ],
)
def test_errors_before_a_stream_have_their_details(
    native: Any, request_: pb.GenerateRequest, code: str, reason: str, says: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(native.Generate(request_))
    error: Any = caught.value
    assert (error.code().name, from_status(rpc_status.from_call(error)).reason) == (code, reason)
    assert says in error.details()


def test_a_text_that_fails_ends_the_stream_with_its_details(native: Any, failing: Parlour) -> None:
    stream, messages = native.Generate(ask()), []
    with pytest.raises(grpc.RpcError) as caught:
        messages.extend(stream)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert from_status(rpc_status.from_call(stream)).reason == "SIDE_FAILED"
    assert failing.server.drain.in_flight == 0


def test_streams_are_counted(native: Any, parlour: Parlour, failing: Parlour) -> None:
    def count(version: str, code: str) -> float:
        labels = {"task": "titles", "version": version, "code": code}
        return parlour.server.metrics.registry.get_sample_value("sidecast_requests_total", labels) or 0.0

    failed, fine = count("unknown", "INTERNAL"), count("1", "OK")
    with pytest.raises(grpc.RpcError):
        list(native.Generate(ask()))
    parlour.service.trouble.clear()
    list(native.Generate(ask()))
    assert (count("unknown", "INTERNAL"), count("1", "OK")) == (failed + 1, fine + 1)


# --- the Open Inference service


def test_tensors_of_a_text_come_in_pieces(tensors: Any) -> None:
    *pieces, last = tensors.ModelStreamInfer(iter([infer("mine")]))
    assert texts(pieces) == WORDS
    assert [piece.infer_response.id for piece in [*pieces, last]] == ["mine"] * 5
    assert [is_final(piece) for piece in [*pieces, last]] == [False] * 4 + [True]
    assert texts([last]) == [""]
    assert last.infer_response.model_version == "1"
    assert last.infer_response.parameters["finish_reason"].string_param == "end"


def test_an_empty_final_response_has_no_outputs(tensors: Any) -> None:
    request = infer("mine")
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    *pieces, last = tensors.ModelStreamInfer(iter([request]))
    assert (texts(pieces), is_final(last), len(last.infer_response.outputs)) == (WORDS, True, 0)


def test_requests_that_do_not_stream_are_answered_at_once(tensors: Any) -> None:
    requests = [infer("a", task="sst2", field="sentence"), infer("b", rows=2)]
    found = {response.infer_response.id: response for response in tensors.ModelStreamInfer(iter(requests))}
    assert all(is_final(response) for response in found.values())
    for request in requests:
        response = found[request.id].infer_response
        response.parameters.pop(FINAL)
        assert response == tensors.ModelInfer(request)


def test_a_request_that_fails_does_not_end_the_stream(tensors: Any) -> None:
    wrong = infer("bad priority")
    wrong.parameters["priority"].int64_param = 9
    requests = [infer("no such task", task="nope"), wrong, infer("good")]
    found = list(tensors.ModelStreamInfer(iter(requests)))
    failed = {item.infer_response.id: item.error_message for item in found if item.error_message}
    assert failed.keys() == {"no such task", "bad priority"}
    assert failed["no such task"].startswith("there is no task 'nope'")
    assert failed["bad priority"].startswith("parameters.priority: must be 1 (the highest) to 4")
    assert "".join(texts([item for item in found if not item.error_message])) == "".join(WORDS)


def test_requests_of_one_stream_are_answered_side_by_side(tensors: Any, parlour: Parlour) -> None:
    parlour.service.slow = 0.02
    try:
        found = list(tensors.ModelStreamInfer(iter([infer("a"), infer("b", "four five six")])))
    finally:
        parlour.service.slow = 0.0
    ids = [item.infer_response.id for item in found]
    assert ids != sorted(ids)
    for id, text in (("a", "TITLE: ONE TWO THREE"), ("b", "TITLE: FOUR FIVE SIX")):
        assert "".join(texts([item for item in found if item.infer_response.id == id])) == text


def test_a_stream_that_is_closed_cancels_its_requests(tensors: Any, slow: Parlour) -> None:
    stream = tensors.ModelStreamInfer(endless(infer("a")))
    wait_until(lambda: slow.server.drain.in_flight)
    stream.cancel()
    assert slow.service.cancelled.wait(60)
    wait_until(lambda: not slow.server.drain.in_flight)


def test_an_invalid_message_ends_the_stream(parlour: Parlour) -> None:
    with grpc.insecure_channel(parlour.address) as channel:
        method: Any = channel.stream_stream
        with pytest.raises(grpc.RpcError, match="not the message"):
            list(method("/inference.GRPCInferenceService/ModelStreamInfer")(iter([b"\xff\xff"])))


# --- the clients


def test_a_client_iterates_and_has_the_result(client: Client) -> None:
    stream = client.stream("titles@production", "one two three", timeout=5)
    assert list(stream) == [Piece(word, (number,)) for number, word in enumerate(WORDS)]
    whole: dict[str, Any] = {"text": "".join(WORDS), "finish_reason": "end", "token_count": 2}
    expected = GeneratedText(task="titles", version=1, generation=4, alias=PRODUCTION, **whole)
    assert stream.result() == stream.result() == expected
    assert client.stream("titles:1", {"body": "one two three"}).result().text == "".join(WORDS)


async def test_an_async_client_iterates_and_has_the_result(parlour: Parlour) -> None:
    async with AsyncClient(parlour.address) as client, client.stream("titles", "one two three") as stream:
        assert [piece.text async for piece in stream] == WORDS
        assert (await stream.result()).text == "".join(WORDS)


def test_errors_of_a_stream_are_the_clients(client: Client, failing: Parlour) -> None:
    with pytest.raises(errors.UnknownTaskError):
        list(client.stream("titels", "a"))
    stream = client.stream("titles", "a b")
    with pytest.raises(errors.SideFailedError):
        stream.result()
    with pytest.raises(errors.InvalidInputError, match="row: must be a text"):
        client.stream("titles", 3)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidInputError, match="priority"):
        client.predict("sst2", ["a"], priority="high")  # type: ignore[arg-type]


async def test_errors_of_an_async_stream_are_the_clients(parlour: Parlour) -> None:
    async with AsyncClient(parlour.address) as client:
        with pytest.raises(errors.UnknownTaskError):
            await client.stream("titels", "a").result()


@pytest.mark.parametrize("way", ["with", "cancel", "drop"])
def test_a_stream_that_is_left_is_cancelled(client: Client, slow: Parlour, way: str) -> None:
    stream = client.stream("titles", "a")
    wait_until(lambda: slow.server.drain.in_flight)
    if way == "with":
        with stream:
            pass
    elif way == "cancel":
        stream.cancel()
        with pytest.raises(errors.CallCancelledError):
            next(stream)
    del stream
    assert slow.service.cancelled.wait(60)


async def test_an_async_stream_that_is_left_is_cancelled(slow: Parlour) -> None:
    async with AsyncClient(slow.address) as client:
        async with client.stream("titles", "a"):
            await asyncio.to_thread(wait_until, lambda: slow.server.drain.in_flight)
        assert await asyncio.to_thread(slow.service.cancelled.wait, 5)


async def test_an_async_stream_that_its_caller_cancelled_says_so(slow: Parlour) -> None:
    async with AsyncClient(slow.address) as client:
        stream = client.stream("titles", "a")
        stream.cancel()
        with pytest.raises(errors.CallCancelledError):
            await anext(stream)


async def test_a_task_that_is_cancelled_in_an_async_stream_ends_cancelled(slow: Parlour) -> None:
    async with AsyncClient(slow.address) as client:
        stream = client.stream("titles", "a")
        reading = asyncio.create_task(stream.result())
        await asyncio.to_thread(wait_until, lambda: slow.server.drain.in_flight)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        with pytest.raises(errors.CallCancelledError):
            await stream.result()


# --- priorities, settings and tenants


def test_priorities_and_settings_come_through(client: Client, tensors: Any, parlour: Parlour) -> None:
    client.predict("titles", ["a"], priority=1)
    client.predict_tasks(["titles"], ["a"], priority=2, decoding={"max_new_tokens": 7})
    assert parlour.service.answerers[-1].max_new_tokens == 7
    client.stream("titles", "a", priority=3).result()
    request = infer()
    request.parameters["priority"].uint64_param = 4
    tensors.ModelInfer(request)
    list(tensors.ModelStreamInfer(iter([request])))
    assert parlour.service.priorities[-5:] == [1, 2, 3, 4, 4]


def test_a_tenant_is_known_by_the_configured_header(tmp_path: Path) -> None:
    parlour = Parlour(tmp_path, [TITLES], request=RequestConfig(tenant_header="x-tenant"))
    with parlour.open(), grpc.insecure_channel(parlour.address) as channel:
        native = sidecast_pb2_grpc.SidecastStub(channel)
        tensors = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        row = pb.Row(text="a")
        for metadata in ((("x-tenant", "me"),), ()):
            native.Predict(pb.PredictRequest(task="titles", rows=[row]), metadata=metadata)
            refs = [pb.TaskRef(task="titles")]
            native.PredictTasks(pb.PredictTasksRequest(tasks=refs, rows=[row]), metadata=metadata)
            list(native.Generate(ask(), metadata=metadata))
            tensors.ModelInfer(infer(), metadata=metadata)
            list(tensors.ModelStreamInfer(iter([infer()]), metadata=metadata))
        with pytest.raises(grpc.RpcError, match="x-tenant: has 257 characters"):
            tensors.ModelInfer(infer(), metadata=(("x-tenant", "x" * 257),))
    assert parlour.service.tenants == ["me"] * 5 + [""] * 5


def test_without_that_setting_there_are_no_tenants(tensors: Any, parlour: Parlour) -> None:
    tensors.ModelInfer(infer(), metadata=(("x-tenant", "me"),))
    assert parlour.service.tenants[-1] == ""


def endless(*requests: Any) -> Iterator[Any]:
    """The requests, and then nothing, for as long as the test takes."""
    yield from requests
    threading.Event().wait(15)


def wait_until(condition: Any) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("never")
