"""Values are counted in the bytes of a message as they would be in the message."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest

from protos import open_inference_pb2 as oip
from protos import sidecast_pb2 as pb
from serving.api import wire
from serving.errors import InvalidInput

TENSOR = oip.ModelInferRequest.InferInputTensor


def fields(count: int) -> dict[str, str]:
    return {str(number): "x" for number in range(count)}


MESSAGES: dict[str, tuple[Message, int]] = {
    "nothing": (pb.PredictRequest(), 0),
    "texts": (pb.PredictRequest(task="a", rows=[pb.Row(text="b" * 300), pb.Row(), pb.Row(prompt="c")]), 6),
    "maps": (pb.PredictRequest(rows=[pb.Row(fields=fields(3))] * 2), 2 * (1 + 3 * 3)),
    "images": (pb.PredictRequest(rows=[pb.Row(images={"a": b"x" * 1000, "b": b""})]), 1 + 2 * 3),
    "numbers": (pb.PredictRequest(priority=300, timeout={"seconds": 1}, generation={"top_p": 0.5, "seed": -1}), 6),
    "packed varints": (oip.ModelInferRequest(inputs=[TENSOR(shape=[1, 2, 3])]), 2 + 3),
    "packed floats": (oip.ModelInferRequest(inputs=[TENSOR(contents={"fp32_contents": [1.0] * 5})]), 3 + 5),
    "bytes": (oip.ModelInferRequest(raw_input_contents=[b"x" * 1000, b""]), 2),
}


@pytest.mark.parametrize(("message", "count"), MESSAGES.values(), ids=MESSAGES)
def test_a_message_may_have_as_many_values_as_the_limit(message: Message, count: int) -> None:
    data = message.SerializeToString()
    wire.check_values(data, message.DESCRIPTOR, count)
    if count:
        with pytest.raises(InvalidInput, match="more than"):
            wire.check_values(data, message.DESCRIPTOR, count - 1)


def test_names_of_images_have_a_limit_and_images_have_none() -> None:
    row = pb.Row(images={"image": b"x" * (wire.MAX_NAME_BYTES + 1)})
    wire.check_values(pb.PredictRequest(rows=[row]).SerializeToString(), pb.PredictRequest.DESCRIPTOR)
    named = pb.PredictRequest(rows=[pb.Row(images={LONG: b""})])
    with pytest.raises(InvalidInput, match="key: has 262,145 bytes"):
        wire.check_values(named.SerializeToString(), pb.PredictRequest.DESCRIPTOR)


def test_one_map_has_a_limit_of_its_own() -> None:
    rows = [pb.Row(fields=fields(wire.MAX_MAP))] * 2
    wire.check_values(pb.PredictRequest(rows=rows).SerializeToString(), pb.PredictRequest.DESCRIPTOR)
    over = pb.PredictRequest(rows=[pb.Row(fields=fields(wire.MAX_MAP + 1))]).SerializeToString()
    with pytest.raises(InvalidInput, match="map"):
        wire.check_values(over, pb.PredictRequest.DESCRIPTOR)


LONG = "x" * (wire.MAX_NAME_BYTES + 1)


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (pb.PredictRequest(task=LONG), "task"),
        (pb.PredictTasksRequest(tasks=[pb.TaskRef(alias=LONG)]), "alias"),
        (pb.RetireRequest(change=pb.Change(message=LONG)), "message"),
        (HealthCheckRequest(service=LONG), "service"),
        (oip.ModelInferRequest(parameters={"route_key": oip.InferParameter(string_param=LONG)}), "string_param"),
    ],
)
def test_a_string_that_is_no_text_of_a_row_has_a_limit(message: Message, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name}: has 262,145 bytes"):
        wire.check_values(message.SerializeToString(), message.DESCRIPTOR)


def test_texts_of_rows_are_bounded_by_their_task_alone() -> None:
    rows = [pb.Row(text=LONG), pb.Row(prompt=LONG), pb.Row(fields={"body": LONG})]
    wire.check_values(pb.PredictRequest(rows=rows).SerializeToString(), pb.PredictRequest.DESCRIPTOR)
    tensor = TENSOR(contents={"bytes_contents": [LONG.encode()]})
    wire.check_values(oip.ModelInferRequest(inputs=[tensor]).SerializeToString(), oip.ModelInferRequest.DESCRIPTOR)


@pytest.mark.parametrize("data", [b"\xff" * 100, b"\x22", b"\x22\x05a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b\x0c"])
def test_bytes_that_are_no_message_are_left_to_the_decoder(data: bytes) -> None:
    wire.check_values(data, pb.PredictRequest.DESCRIPTOR)


@pytest.mark.parametrize("make", [lambda: b"\x22\x00" * 3_000_000, lambda: b"\x0a\x03\x0a\x01a" * 1_000_000])
def test_counting_ends_at_the_limit(make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[Any] = []
    monkeypatch.setattr(wire.time, "sleep", pauses.append)
    with pytest.raises(InvalidInput):
        wire.check_values(make(), pb.PredictTasksRequest.DESCRIPTOR, 10 * wire.PAUSE_VALUES)
    assert len(pauses) == 9  # other threads run in between
