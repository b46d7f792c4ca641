"""The worst message of each method, over a real connection, while another caller asks for one row at a time.

No test measures how fast a machine is: it counts what was done, and its bound of time is that of a freeze.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from protos import open_inference_pb2 as oip
from protos import sidecast_pb2 as pb
from serving.api import inbox
from tests.serving.api_kit import Parlour

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FREEZE_S = 2.0
"""Such messages held back other calls for 17 s when all their values were read before they were counted."""

Tensor = oip.ModelInferRequest.InferInputTensor
Output = oip.ModelInferRequest.InferRequestedOutputTensor

PREDICT = "/sidecast.v1.Sidecast/Predict"
PREDICT_TASKS = "/sidecast.v1.Sidecast/PredictTasks"
GENERATE = "/sidecast.v1.Sidecast/Generate"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
HEALTH = "/grpc.health.v1.Health/Check"
SET_ROUTE = "/sidecast.v1.Admin/SetRoute"

WORST: dict[str, tuple[str, Callable[[], bytes]]] = {
    "tasks": (PREDICT_TASKS, lambda: b"\x0a\x03\x0a\x01a" * 1_000_000),
    "rows": (PREDICT, lambda: b"\x22\x00" * 3_000_000),
    "as many rows as are decoded": (PREDICT, lambda: b"\x22\x00" * 500_000),
    "fields of a row": (PREDICT, lambda: _row({str(number): "x" for number in range(200_000)})),
    "numbers": (GENERATE, lambda: b"\x38\x01" * 5_000_000),
    "inputs": (MODEL_INFER, lambda: oip.ModelInferRequest(inputs=[Tensor(name="a")] * 500_000).SerializeToString()),
    "outputs": (
        MODEL_INFER,
        lambda: oip.ModelInferRequest(model_name="sst2", outputs=[Output()] * 200_000).SerializeToString(),
    ),
    "a shape": (MODEL_INFER, lambda: oip.ModelInferRequest(inputs=[Tensor(shape=[1] * 9_000_000)]).SerializeToString()),
    "a task's name": (PREDICT, lambda: pb.PredictRequest(task="x" * 20_000_000).SerializeToString()),
    "a service's name": (HEALTH, lambda: b"\x0a\x80\xda\xc4\x09" + b"x" * 20_000_000),
    "images of a row": (PREDICT, lambda: _images(200_000)),
    "shares": (SET_ROUTE, lambda: _route(100_000)),
}


def _row(fields: dict[str, str]) -> bytes:
    return pb.PredictRequest(task="sst2", rows=[pb.Row(fields=fields)]).SerializeToString()


def _images(count: int) -> bytes:
    images = {str(number): b"x" for number in range(count)}
    return pb.PredictRequest(task="sst2", rows=[pb.Row(images=images)]).SerializeToString()


def _route(versions: int) -> bytes:
    shares = [pb.Route.Share(version=version, share=1) for version in range(1, versions + 1)]
    return pb.SetRouteRequest(task="sst2", route=pb.Route(shares=shares)).SerializeToString()


class Neighbour:
    """Asks for one row again and again; knows its longest wait."""

    def __init__(self, address: str) -> None:
        self.calls = 0
        self.longest_s = 0.0
        self._channel: Any = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._predict: Any = self._channel.unary_unary(PREDICT)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        request = pb.PredictRequest(task="sst2", rows=[pb.Row(text="dull")]).SerializeToString()
        while not self._ends.is_set():
            began = time.monotonic()
            self._predict(request, timeout=60)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.calls += 1

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        self._channel.close()


@pytest.mark.parametrize(
    ("worst", "compression"),
    [*((worst, None) for worst in WORST), ("tasks", grpc.Compression.Gzip), ("rows", grpc.Compression.Gzip)],
)
def test_no_message_freezes_the_calls_of_others(
    parlour: Parlour,
    monkeypatch: pytest.MonkeyPatch,
    worst: str,
    compression: grpc.Compression | None,
) -> None:
    method, make = WORST[worst]
    counted = []
    check = inbox.check_values

    def record(data: bytes, kind: Any) -> None:
        counted.append(threading.current_thread().name)
        check(data, kind)

    monkeypatch.setattr(inbox, "check_values", record)
    data = make()  # before the neighbour calls: this process makes it, and holds the interpreter for seconds
    opened: Any = grpc.insecure_channel(parlour.address, [("grpc.use_local_subchannel_pool", 1)])
    with contextlib.closing(Neighbour(parlour.address)) as neighbour, opened as channel:
        call: Any = channel.unary_stream(method) if method == GENERATE else channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(data, compression=compression, timeout=60))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    refused_at_once = worst.endswith("name")  # it has few values
    assert [name.startswith("decoder") for name in counted] == [True] * (not refused_at_once)
    assert neighbour.calls
    assert neighbour.longest_s < FREEZE_S


def test_the_limit_of_a_message_holds_for_its_decompressed_bytes(parlour: Parlour) -> None:
    data = bytes(parlour.config.max_message_bytes + 1)
    opened: Any = grpc.insecure_channel(parlour.address)
    with opened as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(PREDICT)(data, compression=grpc.Compression.Gzip, timeout=60)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
