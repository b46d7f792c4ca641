"""Every gRPC service answers with the model's answers, in one process and on Ray Serve.

Covers the native service, the Open Inference Protocol, health, reflection, tenants, metrics, deadlines, cancelled calls
and limits.
"""

import asyncio
import json
from typing import Any

import grpc
import grpc.aio
import pytest
import requests
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import open_inference_pb2 as oip
from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.api.services import OURS
from tests.conformance.cluster import wait_until
from tests.conformance.targets import LONG, SPECS, TENANT, Target, World, outcome
from tests.serving.kit import QUERY, TEXTS
from tests.sidecast.cli_kit import ROOT, python

pytestmark = pytest.mark.timeout(300)

SERVING = health_pb2.HealthCheckResponse.SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
WAIT_S = 30.0
STAGES = ("queue", "tokenize", "backbone", "side")
KINDS = ("sst2", "stars", "meaning", "names", "titles", "tags")
ROWS = [pb.Row(text=text) for text in TEXTS]


def infer(task: str, texts: tuple[str, ...] = TEXTS, **how: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=task, **how)
    tensor = request.inputs.add(name="sentence", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


def long_story(**how: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(task="story", row=ROWS[0], generation=pb.Generation(min_new_tokens=LONG), **how)


def check(answer: pb.Answer, expected: Any) -> None:
    """Compare an answer with the model's."""
    match answer.WhichOneof("answer"):
        case "classification":
            assert answer.classification.label == expected.expected["label"]
            assert list(answer.classification.scores) == pytest.approx(expected.expected["scores"], abs=1e-5)
        case "regression":
            assert answer.regression.value == pytest.approx(expected.expected["value"], abs=1e-5)
        case "embedding":
            assert list(answer.embedding.values) == pytest.approx(expected.expected["embedding"], abs=1e-5)
        case "multilabel":
            assert list(answer.multilabel.labels) == expected.expected["labels"]
            assert list(answer.multilabel.scores) == pytest.approx(expected.expected["scores"], abs=1e-5)
        case "token_classification":
            check_spans([MessageToDict(span) for span in answer.token_classification.spans], expected.expected["spans"])
        case "text":
            assert answer.text.text == expected.expected["text"]
        case kind:
            raise AssertionError(kind)


def check_spans(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare spans: as messages, which leave out a start of 0 and have integers as text, or as JSON."""
    for answer, wanted in zip(found, expected, strict=True):
        assert (int(answer.get("start", 0)), int(answer["end"])) == (wanted["start"], wanted["end"])
        assert (answer["label"], answer["text"]) == (wanted["label"], wanted["text"])
        assert answer["score"] == pytest.approx(wanted["score"], abs=1e-5)


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
    *answered, failed = target.native.PredictTasks(pb.PredictTasksRequest(tasks=refs, rows=ROWS)).results
    for result in answered:
        for answer, expected in zip(result.prediction.answers, world.expected(result.task.task), strict=True):
            check(answer, expected)
    assert failed.error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "no task 'nope'" in failed.error.message


def test_passages_are_ranked_by_what_the_model_says(target: Target, world: World) -> None:
    """More of them than a request of the task may have rows."""
    expected = [example.expected["relevance"] for example in world.expected("passages")]
    ranking = target.client.rerank("passages", QUERY, TEXTS)
    assert [one.index for one in ranking] == sorted(range(len(TEXTS)), key=lambda index: -expected[index])
    assert [one.score for one in ranking] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    body = {"model": "passages", "query": QUERY, "documents": list(TEXTS), "top_n": 1}
    [best] = requests.post(f"{target.http}/v1/rerank", json=body, timeout=60).json()["results"]
    assert best == {"index": ranking[0].index, "relevance_score": pytest.approx(ranking[0].score, abs=1e-5)}


def test_a_stream_tells_the_text_that_predict_makes(target: Target, world: World) -> None:
    *pieces, last = target.native.Generate(pb.GenerateRequest(task="titles", row=ROWS[0]))
    assert (
        "".join(piece.text for piece in pieces) == last.generated.text == world.expected("titles")[0].expected["text"]
    )
    assert last.generated.token_count == sum(len(piece.tokens) for piece in pieces)
    assert last.generated.version == 1


def test_open_inference_describes_the_server_and_its_tasks(target: Target) -> None:
    stub = target.oip
    assert stub.ServerLive(oip.ServerLiveRequest()).live
    assert stub.ServerReady(oip.ServerReadyRequest()).ready
    assert stub.ServerMetadata(oip.ServerMetadataRequest()).name == "sidecast"
    assert [stub.ModelReady(oip.ModelReadyRequest(name=name)).ready for name in ("sst2", "nope")] == [True, False]
    described = stub.ModelMetadata(oip.ModelMetadataRequest(name="sst2"))
    assert [output.name for output in described.outputs] == ["label", "score", "scores"]
    assert stub.ModelConfig(oip.ModelConfigRequest(name="sst2")).config.platform == "sidecast"
    index = stub.RepositoryIndex(oip.RepositoryIndexRequest()).models
    assert {(model.name, model.version, model.state) for model in index} >= {(task, "1", "READY") for task in KINDS}
    stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="sst2"))


@pytest.mark.parametrize(
    ("task", "output"),
    [
        ("sst2", "scores"),
        ("stars", "value"),
        ("meaning", "embedding"),
        ("titles", "text"),
        ("tags", "scores"),
        ("names", "spans"),
    ],
)
def test_open_inference_answers_what_the_model_does(target: Target, world: World, task: str, output: str) -> None:
    response = target.oip.ModelInfer(infer(task, id="7", model_version="1"))
    assert (response.id, response.model_version) == ("7", "1")
    outputs = {tensor.name: tensor.contents for tensor in response.outputs}
    expected = [example.expected for example in world.expected(task)]
    if task == "sst2":
        labels = [label.decode() for label in outputs["label"].bytes_contents]
        assert labels == [answer["label"] for answer in expected]
    if task == "tags":
        labels = [json.loads(row) for row in outputs["labels"].bytes_contents]
        assert labels == [answer["labels"] for answer in expected]
    if task == "names":
        for found, answer in zip(outputs["spans"].bytes_contents, expected, strict=True):
            check_spans(json.loads(found), answer["spans"])
    elif task == "titles":
        assert [text.decode() for text in outputs["text"].bytes_contents] == [answer["text"] for answer in expected]
    else:
        numbers = [number for answer in expected for number in _numbers(answer[output])]
        assert list(outputs[output].fp32_contents) == pytest.approx(numbers, abs=1e-5)


def _numbers(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def test_an_inference_stream_answers_each_request_by_its_id(target: Target, world: World) -> None:
    requests = [infer("titles", TEXTS[:1], id="text"), infer("nope", id="lost"), infer("sst2", id="labels")]
    by_id: dict[str, list[oip.ModelStreamInferResponse]] = {}
    for response in target.oip.ModelStreamInfer(iter(requests)):
        by_id.setdefault(response.infer_response.id, []).append(response)
    pieces = [part.infer_response.outputs[0].contents.bytes_contents[0].decode() for part in by_id["text"]]
    assert "".join(pieces) == world.expected("titles")[0].expected["text"]
    assert "no task 'nope'" in by_id["lost"][0].error_message
    assert len(by_id["labels"]) == 1
    assert by_id["labels"][0].infer_response.outputs[0].name == "label"


def test_an_unchanged_triton_client_works(target: Target, world: World) -> None:
    request = {"address": target.address, "task": "sst2", "texts": TEXTS}
    ran = python(ROOT / "tests" / "triton_rows.py", text_input=json.dumps(request))
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    expected = [example.expected for example in world.expected("sst2")]
    assert document["version"] == "1"
    assert document["outputs"]["label"] == [answer["label"] for answer in expected]
    for row, answer in zip(document["outputs"]["scores"], expected, strict=True):
        assert row == pytest.approx(answer["scores"], abs=1e-5)


@pytest.mark.parametrize("service", ["", *OURS, "sst2"])
def test_health_is_told_overall_by_service_and_by_task(target: Target, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    assert target.health.Check(request).status == SERVING
    watching = target.health.Watch(request)
    assert next(watching).status == SERVING
    watching.cancel()


def test_health_of_an_unknown_service(target: Target) -> None:
    request = health_pb2.HealthCheckRequest(service="nope")
    ended = outcome(lambda: target.health.Check(request))
    assert (ended.code, ended.details) == ("NOT_FOUND", "there is no service or task 'nope'")
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


def test_a_text_that_is_too_long_is_flagged_in_both_services(target: Target) -> None:
    texts = ("dull", "dull " * 500)
    before = sum(target.counted("sidecast_truncated_rows_total", task="sst2"))
    response = target.native.Predict(pb.PredictRequest(task="sst2", rows=[pb.Row(text=text) for text in texts]))
    assert [answer.truncated for answer in response.answers] == [False, True]
    outputs = target.oip.ModelInfer(infer("sst2", texts)).outputs
    assert {output.parameters["truncated_rows"].string_param for output in outputs} == {"[1]"}
    assert [answer.truncated for answer in target.client.predict("sst2", texts)] == [False, True]
    assert sum(target.counted("sidecast_truncated_rows_total", task="sst2")) == before + 3


def test_a_tenant_is_read_from_the_callers_metadata(target: Target) -> None:
    request = pb.PredictRequest(task="sst2", rows=ROWS)
    target.native.Predict(request, metadata=[(TENANT, "someone")])
    ended = outcome(lambda: target.native.Predict(request, metadata=[(TENANT, "x" * 300)]))
    assert (ended.code, ended.reason) == ("INVALID_ARGUMENT", "INVALID_INPUT")


def test_metrics_count_requests_by_their_end_and_tell_what_is_served(target: Target) -> None:
    unknown = {"task": "unknown", "code": "NOT_FOUND"}
    before = sum(target.counted("sidecast_requests_total", **unknown))
    ended = outcome(lambda: target.native.Predict(pb.PredictRequest(task="nope", rows=ROWS)))
    assert ended.code == "NOT_FOUND"
    assert sum(target.counted("sidecast_requests_total", **unknown)) == before + 1

    answered = sum(target.counted("sidecast_requests_total", task="stars", version="1", code="OK"))
    stages = {stage: sum(target.counted("sidecast_stage_seconds_count", stage=stage)) for stage in STAGES}
    target.native.Predict(pb.PredictRequest(task="stars", rows=[pb.Row(text="a text that no other test sends")]))
    assert sum(target.counted("sidecast_requests_total", task="stars", version="1", code="OK")) == answered + 1
    for stage, count in stages.items():
        assert sum(target.counted("sidecast_stage_seconds_count", stage=stage)) > count, stage
    for resident in target.counted("sidecast_resident_side_networks"):
        assert resident >= len(SPECS)
    for generation in target.counted("sidecast_generation_served"):
        assert generation >= len(SPECS)


async def test_many_calls_at_once_are_all_answered_and_every_server_takes_part(target: Target) -> None:
    before = target.counted("sidecast_requests_total", task="sst2", code="OK")
    async with grpc.aio.insecure_channel(target.address) as channel:
        stub: Any = sidecast_pb2_grpc.SidecastStub(channel)
        request = pb.PredictRequest(task="sst2", rows=ROWS)
        answered = await asyncio.gather(*(stub.Predict(request) for _ in range(64)))
    assert len({response.SerializeToString() for response in map(_rounded, answered)}) == 1
    after = target.counted("sidecast_requests_total", task="sst2", code="OK")
    grown = [late - early for early, late in zip(before, after, strict=True)]
    assert sum(grown) == 64
    assert all(grown)


def _rounded(response: pb.PredictResponse) -> pb.PredictResponse:
    """Round scores: their last digits depend on the other rows of the batch. Labels stay."""
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
        ended = outcome(lambda: target.native.Generate(long_story(), timeout=0.5))
    else:
        ended = outcome(lambda: target.native.Generate(long_story(timeout=Duration(nanos=500_000_000))))
        assert ended.reason == "DEADLINE_EXPIRED"
    assert ended.code == "DEADLINE_EXCEEDED"
    wait_until(lambda: counts() == before + 1, WAIT_S)
    wait_until(lambda: sum(target.counted("sidecast_running_rows")) == 0, WAIT_S)


def test_a_caller_who_leaves_a_stream_frees_its_rows(target: Target) -> None:
    counts = lambda: sum(target.counted("sidecast_requests_total", task="story", code="CANCELLED"))  # noqa: E731
    before, call = counts(), target.native.Generate(long_story())
    next(call)
    wait_until(lambda: sum(target.counted("sidecast_running_rows")) == 1, WAIT_S)
    call.cancel()
    wait_until(lambda: counts() == before + 1, WAIT_S)
    wait_until(lambda: sum(target.counted("sidecast_running_rows")) == 0, WAIT_S)


def test_a_caller_who_leaves_before_the_first_answer_frees_its_rows(target: Target) -> None:
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
    for rejected in shed:
        assert rejected.code == "RESOURCE_EXHAUSTED"
        assert rejected.reason == "TASK_OVERLOADED"
        assert [detail for detail in rejected.status["details"] if "retryDelay" in detail]
