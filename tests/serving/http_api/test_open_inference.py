"""`/v2`: tensors as JSON and as bytes after it, and the protocol's descriptions."""

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from tests.serving.api_kit import SST2, Parlour, rule
from tests.serving.http_api.kit import Asker

CAT = b"\x89PNG\r\n\x1a\n\xff\x00 cat"
INFER = "/v2/models/sst2/infer"


def tensor(name: str = "sentence", data: Any = ("a",), **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data, **more}


def outputs(document: dict[str, Any]) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in document["outputs"]}


def test_rows_are_answered_as_tensors(ask: Asker) -> None:
    found = ask.post(INFER, {"id": "7", "inputs": [tensor(data=["a", "b" * 80])]})
    assert (found["model_name"], found["model_version"], found["id"]) == ("sst2", "1", "7")
    assert found["parameters"] == {"generation": 8}
    assert [(output["name"], output["datatype"], output["shape"]) for output in found["outputs"]] == [
        ("label", "BYTES", [2]),
        ("score", "FP32", [2]),
        ("scores", "FP32", [2, 2]),
    ]
    wanted: list[Any] = [rule(SST2, text) for text in ("a", "b" * 80)]
    assert outputs(found)["label"] == [answer.label for answer in wanted]
    assert outputs(found)["scores"] == [float(np.float32(score)) for answer in wanted for score in answer.scores]


def test_a_version_outputs_and_nested_rows_are_chosen(ask: Asker) -> None:
    body = {"inputs": [tensor(data=[["a"], ["b"]], shape=[2, 1])], "outputs": [{"name": "label"}]}
    found = ask.post("/v2/models/sst2/versions/production/infer", body)
    assert list(outputs(found)) == ["label"]
    assert ask.post("/v2/models/sst2/versions/1/infer", body) == found


def test_parameters_reach_the_service(ask: Asker, lounge: Parlour) -> None:
    parameters = {"priority": 3, "route_key": "k", "timeout": 30_000_000, "num_beams": 2, "do_sample": False}
    ask.post("/v2/models/titles/infer", {"inputs": [tensor("body")], "parameters": parameters})
    service = lounge.service
    assert (service.priorities[-1], service.route_keys[-1]) == (3, "k")
    assert service.deadlines[-1] is not None
    assert service.answerers[-1].generation.num_beams == 2


@pytest.mark.parametrize(
    "image",
    [
        {"data": [{"b64": base64.b64encode(CAT).decode()}]},
        {"data": [base64.b64encode(CAT).decode()], "parameters": {"content_type": "base64"}},
    ],
)
def test_an_image_is_base64(ask: Asker, lounge: Parlour, image: dict[str, Any]) -> None:
    body = {"inputs": [tensor("question", ["q"]), {"name": "image", "datatype": "BYTES", "shape": [1], **image}]}
    ask.post("/v2/models/vqa/infer", body)
    assert lounge.service.rows[-1] == [{"question": "q", "image": CAT}]


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def with_binary(body: dict[str, Any], data: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(body).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return head + data, headers


def test_tensors_may_follow_as_bytes_both_ways(ask: Asker, lounge: Parlour) -> None:
    question, image = packed(b"q"), packed(CAT)
    sizes = {"question": len(question), "image": len(image)}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
        for name, size in sizes.items()
    ]
    wanted = [{"name": "label"}, {"name": "scores", "parameters": {"binary_data": True}}]
    data, headers = with_binary({"inputs": inputs, "outputs": wanted}, question + image)
    response = ask("POST", "/v2/models/vqa/infer", data, **headers)
    assert response.status_code == 200, response.text
    assert lounge.service.rows[-1] == [{"question": "q", "image": CAT}]
    length = int(response.headers["Inference-Header-Content-Length"])
    label, scores = json.loads(response.content[:length])["outputs"]
    assert "data" in label
    assert scores["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(response.content[length:], "<f4").sum() == pytest.approx(1)


def test_all_outputs_may_follow_as_bytes(ask: Asker) -> None:
    response = ask("POST", INFER, {"inputs": [tensor()], "parameters": {"binary_data_output": True}})
    length = int(response.headers["Inference-Header-Content-Length"])
    label, *_ = json.loads(response.content[:length])["outputs"]
    assert response.content[length : length + label["parameters"]["binary_data_size"]] == packed(b"negative")


BINARY = {"name": "sentence", "datatype": "BYTES", "shape": [1]}
WRONG: list[tuple[dict[str, Any], bytes, str]] = [
    (
        {"inputs": [BINARY | {"parameters": {"binary_data_size": 99}}]},
        packed(b"a"),
        "binary_data_size must be a number",
    ),
    ({"inputs": [BINARY | {"parameters": {"binary_data_size": 5}, "data": ["a"]}]}, packed(b"a"), "beside binary_data"),
    ({"inputs": [tensor()]}, b"more", "4 bytes after the JSON belong to no tensor"),
    ({"inputs": [BINARY | {"parameters": {"binary_data_size": 4}}]}, b"\xff\0\0\0", "has 0 of 255 bytes"),
]


@pytest.mark.parametrize(("body", "data", "detail"), WRONG)
def test_bytes_that_do_not_fit_are_refused(ask: Asker, body: dict[str, Any], data: bytes, detail: str) -> None:
    sent, headers = with_binary(body, data)
    status, reason, found = ask.problem(INFER, sent, **headers)
    assert (status, reason) == (400, "INVALID_INPUT")
    assert detail in found


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"inputs": [tensor(data=[1])]}, "inputs.sentence: an element of BYTES must be a text"),
        ({"inputs": [tensor(shape=[3])]}, "inputs.sentence: has 1 elements, its shape says 3"),
        ({"inputs": [tensor(datatype="FP32")]}, "inputs.sentence: datatype must be BYTES, got FP32"),
        ({"inputs": [tensor("words")]}, "inputs: task 'sst2' takes one BYTES tensor"),
        ({"inputs": [{"name": "sentence"}]}, "inputs[0].datatype: Field required"),
        ({"inputs": [tensor()], "parameters": {"priority": 9}}, "parameters.priority: must be 1"),
        ({"inputs": [tensor()], "parameters": {"x": [1]}}, "parameters.x: must be a boolean, a number or a text"),
        ({"inputs": [tensor()], "outputs": [{"name": "x"}]}, "outputs.x: is none of task 'sst2'"),
    ],
)
def test_mistakes_are_told_as_the_protocol_has_it_too(ask: Asker, body: dict[str, Any], detail: str) -> None:
    response = ask("POST", INFER, body)
    problem = response.json()
    assert (response.status_code, problem["reason"]) == (400, "INVALID_INPUT")
    assert problem["error"] == problem["detail"]
    assert problem["detail"].startswith(detail)


def test_a_task_and_the_server_are_described(ask: Asker) -> None:
    metadata = ask.get("/v2/models/vqa")
    assert [(each["name"], each["datatype"]) for each in metadata["inputs"]] == [
        ("question", "BYTES"),
        ("image", "BYTES"),
    ]
    assert (metadata["versions"], metadata["parameters"]["images"]) == (["1"], '["image"]')
    assert metadata == ask.get("/v2/models/vqa/versions/1")
    assert ask.get("/v2")["name"] == "sidecast"
    assert ask.get("/v2/health/live") == {"live": True}
    assert ask.get("/v2/health/ready") == {"ready": True}
    assert ask.get("/v2/models/sst2/ready") == {"name": "sst2", "ready": True}
    assert ask.get("/v2/models/sst2/versions/1/ready") == {"name": "sst2", "ready": True}
    response = ask("GET", "/v2/models/sst2/versions/9/ready")
    assert (response.status_code, response.json()) == (404, {"name": "sst2", "ready": False})
