"""A group of tasks asked as one: by PredictTasks, as the Open Inference model group/NAME, and by the client."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.client import Client, InvalidGroupError, NoEarlierGroupError, Predictions, UnknownGroupError
from serving.client.errors import InvalidInputError, SidecastError
from serving.errors import SideFailed
from tests.serving.api_kit import MEANING, RTE, SST2, TWEETS, Parlour, rule

TEXT = "a gripping film"


@pytest.fixture
def parlour(tmp_path: Path) -> Iterator[Parlour]:
    """The group `guard`: sst2 at version 1, which is not production any more, and meaning."""
    parlour = Parlour(tmp_path, (SST2, RTE, TWEETS, MEANING))
    parlour.registry.set_group("guard", ["sst2:1", "meaning"])
    parlour.publish(SST2, seed=1)
    parlour.registry.set_alias("sst2", "production", 2)
    with parlour.open():
        yield parlour


@pytest.fixture
def client(parlour: Parlour) -> Iterator[Client]:
    with Client(parlour.address) as client:
        yield client


@pytest.fixture
def model(parlour: Parlour) -> Iterator[open_inference_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(parlour.address) as channel:
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def sentences(*texts: str) -> oip.ModelInferRequest.InferInputTensor:
    contents = oip.InferTensorContents(bytes_contents=[text.encode() for text in texts])
    return oip.ModelInferRequest.InferInputTensor(
        name="sentence", datatype="BYTES", shape=[len(texts)], contents=contents
    )


def test_predict_tasks_by_group_answers_its_tasks_at_its_versions(parlour: Parlour) -> None:
    with grpc.insecure_channel(parlour.address) as channel:
        stub = sidecast_pb2_grpc.SidecastStub(channel)
        response = stub.PredictTasks(pb.PredictTasksRequest(group="guard", rows=[pb.Row(text=TEXT)]))
    sst2, meaning = response.results
    assert response.group_version == 1
    assert (sst2.task, meaning.task) == (pb.TaskRef(task="sst2", version=1), pb.TaskRef(task="meaning"))
    assert (sst2.prediction.version, meaning.prediction.version) == (1, 1)
    assert sst2.prediction.answers[0].classification.label == rule(SST2, TEXT).label  # type: ignore[union-attr]


def test_a_group_of_the_client_changes_and_rolls_back(client: Client) -> None:
    assert [(one.group, one.version, one.tasks) for one in client.groups()] == [("guard", 1, ("sst2:1", "meaning"))]
    changed = client.set_group("guard", ["sst2", "tweets"], message="why")
    assert (changed.version, changed.version_from, changed.tasks) == (2, 1, ("sst2", "tweets"))
    answers = client.predict_group("guard", [{"sentence": TEXT, "text": TEXT}])
    assert {task: one.version for task, one in answers.items() if isinstance(one, Predictions)} == {
        "sst2": 2,
        "tweets": 1,
    }
    assert client.rollback_group("guard").tasks == ("sst2:1", "meaning")
    assert [action.verb for commit in client.history(group="guard") for action in commit.actions] == [
        "set_group",
        "set_group",
        "rollback_group",
    ]
    newest = client.history(group="guard")[1]
    [action] = newest.actions
    assert (newest.message, action.group, action.version, action.members) == ("why", "guard", 2, ("sst2", "tweets"))
    client.delete_group("guard")
    assert client.groups() == []


def test_the_fault_of_one_task_of_a_group_is_its_own(parlour: Parlour, client: Client) -> None:
    parlour.service.trouble["meaning"] = SideFailed("meaning", 1, "it broke")
    answers = client.predict_group("guard", [TEXT])
    assert isinstance(answers["sst2"], Predictions)
    assert isinstance(answers["meaning"], SidecastError)
    assert answers["meaning"].reason == "SIDE_FAILED"


def test_what_is_no_group_is_a_clear_error(parlour: Parlour, client: Client) -> None:
    with pytest.raises(UnknownGroupError, match="there is no group 'gard'; did you mean 'guard'"):
        client.predict_group("gard", [TEXT])
    with pytest.raises(InvalidInputError, match="must be the name of a group"):
        client.predict_group("", [TEXT])
    with pytest.raises(InvalidGroupError, match="it would have no task"):
        client.set_group("guard", [])
    with pytest.raises(NoEarlierGroupError):
        client.rollback_group("guard")
    both = pb.PredictTasksRequest(group="guard", tasks=[pb.TaskRef(task="sst2")], rows=[pb.Row(text=TEXT)])
    with grpc.insecure_channel(parlour.address) as channel:
        stub = sidecast_pb2_grpc.SidecastStub(channel)
        with pytest.raises(grpc.RpcError, match="give one of the two"):
            stub.PredictTasks(both)


def test_the_model_of_a_group_has_the_inputs_of_all_its_tasks_and_an_output_for_each(
    client: Client, model: open_inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    client.set_group("guard", ["sst2:1", "meaning", "tweets"])
    described = model.ModelMetadata(oip.ModelMetadataRequest(name="group/guard"))
    assert (list(described.versions), [one.name for one in described.inputs]) == (["2"], ["sentence", "text"])
    assert [(one.name, one.datatype, list(one.shape)) for one in described.outputs] == [
        ("sst2", "BYTES", [-1]),
        ("meaning", "FP32", [-1, 3]),
        ("tweets", "FP32", [-1]),
    ]
    config = model.ModelConfig(oip.ModelConfigRequest(name="group/guard")).config
    assert [(one.name, list(one.dims)) for one in config.output] == [("sst2", [1]), ("meaning", [3]), ("tweets", [1])]
    assert model.ModelReady(oip.ModelReadyRequest(name="group/guard")).ready
    assert not model.ModelReady(oip.ModelReadyRequest(name="group/nope")).ready
    index = model.RepositoryIndex(oip.RepositoryIndexRequest()).models
    assert [(one.version, one.state) for one in index if one.name == "group/guard"] == [("2", "READY")]


def test_the_model_of_a_group_answers_every_task(model: open_inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    texts = (TEXT, "x" * 90)
    response = model.ModelInfer(oip.ModelInferRequest(model_name="group/guard", id="7", inputs=[sentences(*texts)]))
    assert (response.model_name, response.model_version, response.id) == ("group/guard", "1", "7")
    assert json.loads(response.parameters["versions"].string_param) == {"sst2": 1, "meaning": 1}
    labels, vectors = response.outputs
    assert (labels.name, vectors.name) == ("sst2", "meaning")
    assert [label.decode() for label in labels.contents.bytes_contents] == [rule(SST2, text).label for text in texts]  # type: ignore[union-attr]
    assert list(vectors.contents.fp32_contents) == [
        value
        for text in texts
        for value in rule(MEANING, text).values  # type: ignore[union-attr]
    ]


def test_columns_of_a_groups_tasks_come_where_they_are_asked_for(
    model: open_inference_pb2_grpc.GRPCInferenceServiceStub,
) -> None:
    outputs = [oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("sst2.scores", "sst2")]
    request = oip.ModelInferRequest(model_name="group/guard", inputs=[sentences(TEXT)], outputs=outputs)
    scores, label = model.ModelInfer(request).outputs
    assert (scores.name, list(scores.shape), label.name) == ("sst2.scores", [1, 2], "sst2")
    assert list(scores.contents.fp32_contents) == pytest.approx(rule(SST2, TEXT).scores)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "code", "why"),
    [
        ({"model_name": "group/nope"}, "NOT_FOUND", "there is no group 'nope'"),
        ({"model_name": "group/"}, "NOT_FOUND", "there is no group ''"),
        ({"model_version": "7"}, "INVALID_ARGUMENT", "must be empty or 1"),
        ({"outputs": [{"name": "tweets"}]}, "INVALID_ARGUMENT", "is none of group/guard"),
        ({"inputs": []}, "INVALID_ARGUMENT", "takes one BYTES tensor per field of its template \\(sentence\\)"),
    ],
)
def test_a_wrong_call_of_a_groups_model_says_why(
    model: open_inference_pb2_grpc.GRPCInferenceServiceStub, changes: dict, code: str, why: str
) -> None:
    request = {"model_name": "group/guard", "inputs": [sentences(TEXT)]} | changes
    with pytest.raises(grpc.RpcError, match=why) as caught:
        model.ModelInfer(oip.ModelInferRequest(**request))
    assert caught.value.code().name == code  # type: ignore[attr-defined]


def test_a_stream_answers_a_group_and_the_fault_of_one_task_is_that_of_its_call(
    parlour: Parlour, model: open_inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    request = oip.ModelInferRequest(model_name="group/guard", inputs=[sentences(TEXT)])
    [answered] = model.ModelStreamInfer(iter([request]))
    assert [output.name for output in answered.infer_response.outputs] == ["sst2", "meaning"]
    parlour.service.trouble["meaning"] = SideFailed("meaning", 1, "it broke")
    with pytest.raises(grpc.RpcError, match="it broke"):
        model.ModelInfer(request)
