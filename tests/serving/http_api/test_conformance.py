"""REST answers what gRPC answers: the same rows, the same mistakes, by both services."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.client.errors import from_status
from serving.http.problem import STATUSES
from tests.serving.api_kit import MEANING, SPECS, Parlour
from tests.serving.http_api.kit import Asker

ROW = {"sentence": "s", "sentence1": "a", "sentence2": "b" * 40, "body": "a fine day", "text": "good"}
NAMES = [spec.name for spec in (*SPECS, MEANING)]


@pytest.fixture(scope="module")
def native(lounge: Parlour) -> Iterator[Any]:
    with grpc.insecure_channel(lounge.address) as channel:
        yield sidecast_pb2_grpc.SidecastStub(channel)


@pytest.fixture(scope="module")
def tensors(lounge: Parlour) -> Iterator[Any]:
    with grpc.insecure_channel(lounge.address) as channel:
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def answer_of(answer: pb.Answer) -> dict[str, Any]:
    kind = answer.WhichOneof("answer")
    inner = getattr(answer, kind or "")
    name = {"embedding": "values"}
    values = {field.name: getattr(inner, field.name) for field in inner.DESCRIPTOR.fields}
    plain = {field: list(value) if field in ("scores", "values") else value for field, value in values.items()}
    if kind in name:
        plain = {kind: plain["values"]}
    return plain | {"truncated": answer.truncated}


@pytest.mark.parametrize("task", NAMES)
def test_a_prediction(ask: Asker, native: Any, task: str) -> None:
    expected = native.Predict(pb.PredictRequest(task=task, rows=[pb.Row(fields=ROW)] * 2))
    found = ask.post(f"/v1/tasks/{task}:predict", {"inputs": [ROW] * 2})
    assert found["answers"] == [answer_of(answer) for answer in expected.answers]
    for name in ("task", "version", "generation", "alias"):
        assert found[name] == getattr(expected, name)
    assert found.get("labels", []) == list(expected.labels)


def test_predictions_of_many_tasks(ask: Asker, native: Any) -> None:
    tasks = [*NAMES, "nope"]
    request = pb.PredictTasksRequest(tasks=[pb.TaskRef(task=task) for task in tasks], rows=[pb.Row(fields=ROW)])
    *expected, refused = native.PredictTasks(request).results
    *found, problem = ask.post("/v1/predict", {"tasks": tasks, "inputs": [ROW]})["results"]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["prediction"]["answers"] == [answer_of(answer) for answer in theirs.prediction.answers]
    assert problem["error"]["detail"] == refused.error.message


def test_a_stream(ask: Asker, native: Any) -> None:
    expected = list(native.Generate(pb.GenerateRequest(task="titles", row=pb.Row(fields=ROW))))
    found = [json.loads(data) for _, data in ask.events("/v1/tasks/titles:predict", {"inputs": [ROW], "stream": True})]
    assert [piece["text"] for piece in found[:-1]] == [piece.text for piece in expected[:-1]]
    last = expected[-1].generated
    assert found[-1] == {field.name: getattr(last, field.name) for field in last.DESCRIPTOR.fields}


@pytest.mark.parametrize("task", NAMES)
def test_tensors(ask: Asker, tensors: Any, task: str) -> None:
    metadata = tensors.ModelMetadata(oip.ModelMetadataRequest(name=task))
    request = oip.ModelInferRequest(model_name=task, id="7")
    inputs = []
    for each in metadata.inputs:
        text = ROW[each.name]
        request.inputs.add(name=each.name, datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
        inputs.append({"name": each.name, "datatype": "BYTES", "shape": [1], "data": [text]})
    expected = tensors.ModelInfer(request)
    found = ask.post(f"/v2/models/{task}/infer", {"id": "7", "inputs": inputs})
    assert (found["model_version"], found["id"]) == (expected.model_version, expected.id)
    for ours, theirs in zip(found["outputs"], expected.outputs, strict=True):
        texts = [element.decode() for element in theirs.contents.bytes_contents]
        assert ours["data"] == (texts or list(theirs.contents.fp32_contents))
        assert (ours["name"], ours["datatype"], ours["shape"]) == (theirs.name, theirs.datatype, list(theirs.shape))


def test_metadata(ask: Asker, tensors: Any) -> None:
    for task in NAMES:
        expected = tensors.ModelMetadata(oip.ModelMetadataRequest(name=task))
        found = ask.get(f"/v2/models/{task}")
        for kind in ("inputs", "outputs"):
            assert [(each["name"], each["datatype"], each["shape"]) for each in found[kind]] == [
                (each.name, each.datatype, list(each.shape)) for each in getattr(expected, kind)
            ]
        assert found["parameters"].keys() == expected.parameters.keys()
        assert found["versions"] == list(expected.versions)


MISTAKES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("nope", {"inputs": ["a"]}, {"rows": [pb.Row(text="a")]}),
    ("sst2", {"inputs": ["a"], "version": 9}, {"rows": [pb.Row(text="a")], "version": 9}),
    ("sst2", {"inputs": ["a"], "alias": "beta"}, {"rows": [pb.Row(text="a")], "alias": "beta"}),
    ("sst2", {"inputs": [""]}, {"rows": [pb.Row(text="")]}),
    ("rte", {"inputs": [ROW] * 6}, {"rows": [pb.Row(fields=ROW)] * 6}),
    (
        "sst2",
        {"inputs": ["a"], "generation": {"top_k": 3}},
        {"rows": [pb.Row(text="a")], "generation": pb.Generation(top_k=3)},
    ),
]


@pytest.mark.parametrize(("task", "body", "message"), MISTAKES)
def test_a_mistake(ask: Asker, native: Any, task: str, body: dict[str, Any], message: dict[str, Any]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        native.Predict(pb.PredictRequest(task=task, **message))
    error: Any = caught.value
    status, reason, detail = ask.problem(f"/v1/tasks/{task}:predict", body)
    assert reason == from_status(rpc_status.from_call(error)).reason
    assert status == STATUSES[error.code().value[0]]
    assert detail == error.details().replace("rows[", "inputs[")
