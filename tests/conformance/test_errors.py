"""Every mistake of a caller gets the same code, message and google.rpc details from one process and from Ray Serve."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2

from protos import open_inference_pb2 as oip
from protos import sidecast_pb2 as pb
from tests.conformance.targets import MAX_MESSAGE_BYTES, TENANT, Target, World, outcome
from tests.conformance.test_calls import ROWS, infer, long_story

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

Call = Callable[[Target], Any]
NO_MESSAGE = b"\xff\xff\xff"


def predict(**how: Any) -> Call:
    request = pb.PredictRequest(**{"task": "sst2", "rows": ROWS} | how)
    return lambda target: target.native.Predict(request)


def admin(method: str, request: Any) -> Call:
    return lambda target: getattr(target.admin, method)(request)


def oip_call(method: str, request: Any) -> Call:
    return lambda target: getattr(target.oip, method)(request)


def publish(*parts: pb.PublishRequest) -> Call:
    return lambda target: target.admin.Publish(iter(parts))


def raw(path: str, kind: str = "unary_unary") -> Call:
    """Send bytes that are no message."""
    return lambda target: getattr(target.channel, kind)(path)(
        iter([NO_MESSAGE]) if kind.startswith("stream") else NO_MESSAGE
    )


ROUTE = pb.Route(shares=[pb.Route.Share(version=1, share=20_000)])
CHUNK = pb.PublishRequest(chunk=pb.PublishRequest.Chunk(file="x", data=b"x"))
HEADER = pb.PublishRequest(header=pb.PublishRequest.Header(manifest=b"{}"))
TENSOR = oip.ModelInferRequest.InferInputTensor(name="sentence", datatype="FP32", shape=[1])

CASES: dict[str, tuple[str, str, Call]] = {
    # the name: the code, the reason, the call
    "unknown task": ("NOT_FOUND", "UNKNOWN_TASK", predict(task="nope")),
    "unknown version": ("NOT_FOUND", "UNKNOWN_VERSION", predict(version=77)),
    "unknown alias": ("NOT_FOUND", "UNKNOWN_ALIAS", predict(alias="canary")),
    "no rows": ("INVALID_ARGUMENT", "INVALID_INPUT", predict(rows=[])),
    "empty row": ("INVALID_ARGUMENT", "INVALID_INPUT", predict(rows=[pb.Row()])),
    "row with other fields": ("INVALID_ARGUMENT", "INVALID_INPUT", predict(rows=[pb.Row(fields={"other": "x"})])),
    "too many rows": ("INVALID_ARGUMENT", "TOO_MANY_ROWS", predict(rows=ROWS * 40)),
    "priority": ("INVALID_ARGUMENT", "INVALID_INPUT", predict(priority=9)),
    "timeout": ("INVALID_ARGUMENT", "INVALID_INPUT", predict(timeout=Duration(seconds=-1))),
    "generation": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        predict(task="titles", generation=pb.Generation(num_beams=-1)),
    ),
    "no tasks": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        lambda target: target.native.PredictTasks(pb.PredictTasksRequest(rows=ROWS)),
    ),
    "stream of a class": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        lambda target: target.native.Generate(pb.GenerateRequest(task="sst2", row=ROWS[0])),
    ),
    "stream of an unknown task": (
        "NOT_FOUND",
        "UNKNOWN_TASK",
        lambda target: target.native.Generate(pb.GenerateRequest(task="nope", row=ROWS[0])),
    ),
    "tenant": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        lambda target: target.native.Predict(pb.PredictRequest(task="sst2", rows=ROWS), metadata=[(TENANT, "x" * 300)]),
    ),
    "deadline": (
        "DEADLINE_EXCEEDED",
        "DEADLINE_EXPIRED",
        lambda target: target.native.Generate(long_story(timeout=Duration(nanos=300_000_000))),
    ),
    "OIP unknown task": ("NOT_FOUND", "UNKNOWN_TASK", oip_call("ModelInfer", infer("nope"))),
    "OIP datatype": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        oip_call("ModelInfer", oip.ModelInferRequest(model_name="sst2", inputs=[TENSOR])),
    ),
    "OIP metadata": ("NOT_FOUND", "UNKNOWN_TASK", oip_call("ModelMetadata", oip.ModelMetadataRequest(name="nope"))),
    "OIP config": ("NOT_FOUND", "UNKNOWN_TASK", oip_call("ModelConfig", oip.ModelConfigRequest(name="nope"))),
    "OIP load": (
        "NOT_FOUND",
        "UNKNOWN_TASK",
        oip_call("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="nope")),
    ),
    "OIP unload": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        oip_call("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="sst2")),
    ),
    "OIP repository": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        oip_call("RepositoryIndex", oip.RepositoryIndexRequest(repository_name="x")),
    ),
    "route without one": ("INVALID_ARGUMENT", "INVALID_INPUT", admin("SetRoute", pb.SetRouteRequest(task="sst2"))),
    "route of too much": (
        "INVALID_ARGUMENT",
        "INVALID_ROUTE",
        admin("SetRoute", pb.SetRouteRequest(task="sst2", route=ROUTE)),
    ),
    "route of another seen": (
        "ABORTED",
        "ROUTE_CHANGED",
        admin(
            "SetRoute",
            pb.SetRouteRequest(task="sst2", route=pb.Route(shadows=[1]), seen=pb.Route(shadows=[5])),
        ),
    ),
    "alias's name": (
        "INVALID_ARGUMENT",
        "INVALID_NAME",
        admin("SetRoute", pb.SetRouteRequest(task="sst2", alias="No Name!", route=pb.Route(version=1))),
    ),
    "roll back to nothing": (
        "FAILED_PRECONDITION",
        "NOTHING_TO_ROLL_BACK",
        admin("Rollback", pb.RollbackRequest(task="sst2")),
    ),
    "retire what serves": (
        "FAILED_PRECONDITION",
        "VERSION_IN_USE",
        admin("Retire", pb.RetireRequest(task="sst2", version=1)),
    ),
    "task": ("NOT_FOUND", "UNKNOWN_TASK", admin("GetTask", pb.GetTaskRequest(task="nope"))),
    "history": ("INVALID_ARGUMENT", "INVALID_INPUT", admin("History", pb.HistoryRequest(limit=-1))),
    "comparison": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        admin("GetComparison", pb.GetComparisonRequest(task="sst2", disagreements=-1)),
    ),
    "generation to await": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        admin("AwaitGeneration", pb.AwaitGenerationRequest(timeout=Duration(seconds=1000))),
    ),
    "publish nothing": ("INVALID_ARGUMENT", "INVALID_INPUT", publish()),
    "publish bytes first": ("INVALID_ARGUMENT", "INVALID_INPUT", publish(CHUNK)),
    "publish no manifest": ("INVALID_ARGUMENT", "INVALID_ARTIFACT", publish(HEADER)),
    "no message": ("INVALID_ARGUMENT", "INVALID_INPUT", raw("/sidecast.v1.Sidecast/Predict")),
    "no message to OIP": ("INVALID_ARGUMENT", "INVALID_INPUT", raw("/inference.GRPCInferenceService/ModelInfer")),
    "no message for a stream": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        raw("/sidecast.v1.Sidecast/Generate", "unary_stream"),
    ),
    "no message in an upload": ("INVALID_ARGUMENT", "INVALID_INPUT", raw("/sidecast.v1.Admin/Publish", "stream_unary")),
    "no message in a stream": (
        "INVALID_ARGUMENT",
        "INVALID_INPUT",
        raw("/inference.GRPCInferenceService/ModelStreamInfer", "stream_stream"),
    ),
    "unknown method": ("UNIMPLEMENTED", "", raw("/sidecast.v1.Sidecast/Nothing")),
    "unknown service": ("UNIMPLEMENTED", "", raw("/sidecast.v1.Nothing/Predict")),
    "method we leave out": ("UNIMPLEMENTED", "", raw("/inference.GRPCInferenceService/SystemSharedMemoryStatus")),
    "health of nothing": (
        "NOT_FOUND",
        "",
        lambda target: target.health.Check(health_pb2.HealthCheckRequest(service="nope")),
    ),
    "too large a message": ("RESOURCE_EXHAUSTED", "", predict(rows=[pb.Row(text="x" * MAX_MESSAGE_BYTES)])),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_is_the_same(case: str, one_process: Target, ray_serve: Target) -> None:
    code, reason, call = CASES[case]
    expected = outcome(lambda: call(one_process))
    assert (expected.code, expected.reason) == (code, reason), expected
    assert outcome(lambda: call(ray_serve)) == expected


def test_a_version_that_no_server_loads_is_refused_the_same(
    one_process: Target, ray_serve: Target, world: World
) -> None:
    spec = one_process.own("refused")
    world.publish(spec)
    world.broken(spec)
    for target in (one_process, ray_serve):
        target.client.await_generation(timeout=30)
    request = pb.PredictRequest(task=spec.name, version=2, rows=ROWS)
    expected = outcome(lambda: one_process.native.Predict(request))
    assert (expected.code, expected.reason) == ("FAILED_PRECONDITION", "VERSION_REFUSED")
    assert outcome(lambda: ray_serve.native.Predict(request)) == expected


def test_a_server_answers_after_all_of_that(one_process: Target, ray_serve: Target) -> None:
    for target in (one_process, ray_serve):
        request = pb.PredictRequest(task="sst2", rows=ROWS)
        assert target.native.Predict(request).version == 1
