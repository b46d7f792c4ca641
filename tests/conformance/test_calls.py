"""Both doors and what is beside them answer alike at one process and on Ray Serve."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import open_inference_pb2 as oip
from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.api.services import OURS
from tests.conformance.cluster import wait_until
from tests.conformance.targets import LONG, TENANT, Target, World, outcome
from tests.serving.kit import TEXTS
from tests.sidecast.cli_kit import ROOT, plain_environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SERVING = health_pb2.HealthCheckResponse.SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
WAIT_S = 30.0
KINDS = ("sst2", "stars", "meaning", "titles")
ROWS = [pb.Row(text=text) for text in TEXTS]


def infer(task: str, texts: tuple[str, ...] = TEXTS, **how: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=task, **how)
    tensor = request.inputs.add(name="sentence", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


def long_story(**how: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(task="story", row=ROWS[0], generation=pb.Generation(min_new_tokens=LONG), **how)


def check(answer: pb.Answer, expected: Any) -> None:
    """Against what the model answers alone."""
    match answer.WhichOneof("answer"):
        case "classification":
            assert answer.classification.label == expected.expected["label"]
            assert list(answer.classification.scores) == pytest.approx(expected.expected["scores"], abs=1e-5)
        case "regression":
            assert answer.regression.value == pytest.approx(expected.expected["value"], abs=1e-5)
        case "embedding":
            assert list(answer.embedding.values) == pytest.approx(expected.expected["embedding"], abs=1e-5)
        case "text":
            assert answer.text.text == expected.expected["text"]
        case kind:
            raise AssertionError(kind)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("which", [{}, {"version": 1}, {"alias": "production"}, {"route_key": "a caller"}])
def test_predict_answers_what_the_model_does(target: Target, world: World, task: str, which: dict[str, Any]) -> None:
    response = target.native.Predict(pb.PredictRequest(task=task, rows=ROWS, **which))
    assert (response.task, response.version) == (task, 1)
    assert response.alias == ("" if "version" in which else "production")
    for answer, expected in zip(response.answers, world.expected(task), strict=True):
        check(answer, expected)


def test_one_call_answers_many_tasks_and_an_unknown_one_fails_alone(target: Target, world: World) -> None:
    refs = [pb.TaskRef(task=task) for task in (*KINDS, "nope")]
    *found, failed = target.native.PredictTasks(pb.PredictTasksRequest(tasks=refs, rows=ROWS)).results
    for result in found:
        for answer, expected in zip(result.prediction.answers, world.expected(result.task.task), strict=True):
            check(answer, expected)
    assert failed.error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "no task 'nope'" in failed.error.message


def test_a_stream_tells_the_text_that_predict_makes(target: Target, world: World) -> None:
    *pieces, last = target.native.Generate(pb.GenerateRequest(task="titles", row=ROWS[0]))
    assert (
        "".join(piece.text for piece in pieces) == last.generated.text == world.expected("titles")[0].expected["text"]
    )
    assert last.generated.token_count == sum(len(piece.tokens) for piece in pieces)
    assert last.generated.version == 1


def test_the_open_inference_door_answers(target: Target, world: World) -> None:
    door = target.oip
    assert door.ServerLive(oip.ServerLiveRequest()).live
    assert door.ServerReady(oip.ServerReadyRequest()).ready
    assert door.ServerMetadata(oip.ServerMetadataRequest()).name == "sidecast"
    assert [door.ModelReady(oip.ModelReadyRequest(name=name)).ready for name in ("sst2", "nope")] == [True, False]
    described = door.ModelMetadata(oip.ModelMetadataRequest(name="sst2"))
    assert [each.name for each in described.outputs] == ["label", "score", "scores"]
    assert door.ModelConfig(oip.ModelConfigRequest(name="sst2")).config.platform == "sidecast"
    answered = door.ModelInfer(infer("sst2", id="7", model_version="1"))
    assert (answered.id, answered.model_version) == ("7", "1")
    labels = [label.decode() for label in answered.outputs[0].contents.bytes_contents]
    assert labels == [example.expected["label"] for example in world.expected("sst2")]
    index = door.RepositoryIndex(oip.RepositoryIndexRequest()).models
    assert {(each.name, each.version, each.state) for each in index} >= {(task, "1", "READY") for task in KINDS}
    door.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="sst2"))


def test_an_inference_stream_answers_each_request_by_its_id(target: Target, world: World) -> None:
    asked = [infer("titles", TEXTS[:1], id="text"), infer("nope", id="lost"), infer("sst2", id="labels")]
    said: dict[str, list[oip.ModelStreamInferResponse]] = {}
    for response in target.oip.ModelStreamInfer(iter(asked)):
        said.setdefault(response.infer_response.id, []).append(response)
    pieces = [each.infer_response.outputs[0].contents.bytes_contents[0].decode() for each in said["text"]]
    assert "".join(pieces) == world.expected("titles")[0].expected["text"]
    assert "no task 'nope'" in said["lost"][0].error_message
    assert len(said["labels"]) == 1
    assert said["labels"][0].infer_response.outputs[0].name == "label"


def test_an_unchanged_triton_client_works(target: Target, world: World) -> None:
    asked = {"address": target.address, "task": "sst2", "texts": TEXTS}
    program = ROOT / "tests" / "triton_rows.py"
    ran = subprocess.run(
        [sys.executable, program],
        input=json.dumps(asked),
        env=plain_environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    answered = json.loads(ran.stdout)
    assert answered["version"] == "1"
    assert answered["outputs"]["label"] == [example.expected["label"] for example in world.expected("sst2")]


@pytest.mark.parametrize("service", ["", *OURS, "sst2"])
def test_health_is_told_overall_by_service_and_by_task(target: Target, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    assert target.health.Check(request).status == SERVING
    watching = target.health.Watch(request)
    assert next(watching).status == SERVING
    watching.cancel()


def test_health_of_what_nobody_knows(target: Target) -> None:
    request = health_pb2.HealthCheckRequest(service="nope")
    found = outcome(lambda: target.health.Check(request))
    assert (found.code, found.details) == ("NOT_FOUND", "there is no service or task 'nope'")
    watching = target.health.Watch(request)
    assert next(watching).status == UNKNOWN
    watching.cancel()


def test_reflection_lists_our_services_and_describes_them(target: Target) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(target.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="sidecast.v1.Admin"),
    ]
    listed, described = stub.ServerReflectionInfo(iter(asked))
    names = {service.name for service in listed.list_services_response.service}
    assert {*OURS, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


def test_a_tenant_is_read_from_the_callers_metadata(target: Target) -> None:
    request = pb.PredictRequest(task="sst2", rows=ROWS)
    target.native.Predict(request, metadata=[(TENANT, "someone")])
    found = outcome(lambda: target.native.Predict(request, metadata=[(TENANT, "x" * 300)]))
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_INPUT")


async def test_many_calls_at_once_are_all_answered_and_every_server_takes_part(target: Target) -> None:
    before = target.counted("sidecast_requests_total", task="sst2", code="OK")
    async with grpc.aio.insecure_channel(target.address) as channel:
        stub: Any = sidecast_pb2_grpc.SidecastStub(channel)
        request = pb.PredictRequest(task="sst2", rows=ROWS)
        answered = await asyncio.gather(*(stub.Predict(request) for _ in range(64)))
    assert len({each.SerializeToString() for each in map(_rounded, answered)}) == 1
    after = target.counted("sidecast_requests_total", task="sst2", code="OK")
    grown = [late - early for early, late in zip(before, after, strict=True)]
    assert sum(grown) == 64
    assert all(grown)


def _rounded(response: pb.PredictResponse) -> pb.PredictResponse:
    """Rows may be answered in other company, so the last digits differ. All labels stay."""
    response.ClearField("generation")
    for answer in response.answers:
        answer.classification.score = round(answer.classification.score, 4)
        answer.classification.scores[:] = [round(score, 4) for score in answer.classification.scores]
    return response


@pytest.mark.parametrize("how", ["gRPC's", "the message's"])
def test_a_deadline_ends_a_call_and_is_counted_as_one(target: Target, how: str) -> None:
    counts = lambda: sum(target.counted("sidecast_requests_total", task="story", code="DEADLINE_EXCEEDED"))  # noqa: E731
    before = counts()
    if how == "gRPC's":
        found = outcome(lambda: target.native.Generate(long_story(), timeout=0.5))
    else:
        found = outcome(lambda: target.native.Generate(long_story(timeout=Duration(nanos=500_000_000))))
        assert found.reason == "DEADLINE_EXPIRED"
    assert found.code == "DEADLINE_EXCEEDED"
    wait_until(lambda: counts() == before + 1, WAIT_S)
    assert sum(target.counted("sidecast_running_rows")) == 0


def test_a_caller_who_goes_frees_its_rows(target: Target) -> None:
    counts = lambda: sum(target.counted("sidecast_requests_total", task="story", code="CANCELLED"))  # noqa: E731
    before, call = counts(), target.native.Generate(long_story())
    next(call)
    assert sum(target.counted("sidecast_running_rows")) == 1
    call.cancel()
    wait_until(lambda: counts() == before + 1, WAIT_S)
    assert sum(target.counted("sidecast_running_rows")) == 0


def test_a_caller_who_goes_before_the_first_answer_frees_its_rows(target: Target) -> None:
    counts = lambda: sum(target.counted("sidecast_requests_total", task="story", code="CANCELLED"))  # noqa: E731
    request = pb.PredictRequest(task="story", rows=ROWS, generation=pb.Generation(min_new_tokens=LONG))
    before, call = counts(), target.native.Predict.future(request)
    wait_until(lambda: sum(target.counted("sidecast_running_rows")) == len(ROWS), WAIT_S)
    call.cancel()
    wait_until(lambda: counts() == before + 1, WAIT_S)
    wait_until(lambda: sum(target.counted("sidecast_running_rows")) == 0, WAIT_S)


def test_a_task_at_its_limit_sheds_with_a_hint_when_to_try_again(target: Target) -> None:
    request = pb.PredictRequest(task="busy", rows=ROWS[:1], generation=pb.Generation(min_new_tokens=LONG))
    calls = [target.native.Predict.future(request) for _ in range(8)]
    wait_until(lambda: sum(call.done() for call in calls) >= 8 - target.followers, WAIT_S)
    shed = [outcome(call.result) for call in calls if call.done()]
    for call in calls:
        call.cancel()
    for each in shed:
        assert each.code == "RESOURCE_EXHAUSTED"
        assert each.reason == "TASK_OVERLOADED"
        assert [detail for detail in each.status["details"] if "retryDelay" in detail]
