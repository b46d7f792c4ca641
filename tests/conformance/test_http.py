"""The HTTP API answers with the model's answers, and with gRPC's reasons, in one process and on Ray Serve."""

import json
from typing import Any

import pytest
import requests

from protos import sidecast_pb2 as pb
from serving.http.problem import STATUSES
from tests.conformance.targets import MAX_MESSAGE_BYTES, Target, World, outcome
from tests.serving.kit import TEXTS

pytestmark = pytest.mark.timeout(300)

KINDS = ("sst2", "stars", "meaning", "titles", "tags")


def post(target: Target, path: str, body: Any, **headers: str) -> requests.Response:
    return requests.post(f"{target.http}{path}", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("task", KINDS)
def test_answers_are_the_models(target: Target, world: World, task: str) -> None:
    found = post(target, f"/v1/tasks/{task}:predict", {"inputs": list(TEXTS)}).json()
    assert (found["task"], found["version"], found["alias"]) == (task, 1, "production")
    for answer, example in zip(found["answers"], world.expected(task), strict=True):
        for name, value in example.expected.items():
            assert answer[name] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-5))


def test_tensors_are_those_of_the_short_form(target: Target) -> None:
    tensor = {"name": "sentence", "datatype": "BYTES", "shape": [len(TEXTS)], "data": list(TEXTS)}
    outputs = post(target, "/v2/models/sst2/infer", {"inputs": [tensor]}).json()["outputs"]
    labels = next(output["data"] for output in outputs if output["name"] == "label")
    found = post(target, "/v1/predict", {"tasks": ["sst2"], "inputs": list(TEXTS)}).json()
    assert labels == [answer["label"] for answer in found["results"][0]["prediction"]["answers"]]


def test_a_text_is_streamed(target: Target, world: World) -> None:
    response = post(target, "/v1/tasks/titles:predict", {"inputs": [TEXTS[0]], "stream": True})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    lines = response.content.decode().split("\n")  # always UTF-8, as server-sent events are
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert data[-1]["text"] == world.expected("titles")[0].expected["text"]
    assert "".join(piece["text"] for piece in data[:-1]) == data[-1]["text"]


def test_errors_have_grpcs_reasons(target: Target) -> None:
    for task in ("nope", "sst2"):
        failed = outcome(lambda task=task: target.native.Predict(pb.PredictRequest(task=task, rows=[pb.Row(text="")])))
        response = post(target, f"/v1/tasks/{task}:predict", {"inputs": [""]}, **{"X-Request-Id": "job-7"})
        problem = response.json()
        assert response.headers["Content-Type"] == "application/problem+json"
        assert (problem["reason"], response.status_code) == (failed.reason, STATUSES[failed.status["code"]])
        assert problem["request_id"] == response.headers["X-Request-Id"] == "job-7"


def test_a_body_over_the_limit_is_refused(target: Target) -> None:
    response = post(target, "/v1/tasks/sst2:predict", {"inputs": ["a" * MAX_MESSAGE_BYTES]})
    assert (response.status_code, response.json()["reason"]) == (413, "BODY_TOO_LARGE")


def test_a_deadline_ends_a_request(target: Target) -> None:
    body = {"inputs": [TEXTS[0]], "generation": {"min_new_tokens": 3000}, "timeout": 0.2}
    response = post(target, "/v1/tasks/story:predict", body)
    assert (response.status_code, response.json()["reason"]) == (504, "DEADLINE_EXPIRED")


def test_probes_and_the_document_are_there(target: Target) -> None:
    assert requests.get(f"{target.http}/readyz", timeout=60).text == "ok\n"
    assert "/v1/predict" in requests.get(f"{target.http}/openapi.json", timeout=60).json()["paths"]
