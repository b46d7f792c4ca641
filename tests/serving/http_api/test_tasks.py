"""`/v1/tasks` and `/v1/predict`: what a request may say, and what it is answered."""

import base64
import json
from typing import Any

import pytest

from ladder.decoding.settings import Generation
from tests.serving.api_kit import CAPTIONS, RTE, SST2, TWEETS, VQA, Parlour, rule
from tests.serving.http_api.kit import Asker

CAT = b"\x89PNG\r\n\x1a\n\xff\x00 cat"
IMAGE = {"b64": base64.b64encode(CAT).decode()}


def test_answers_come_in_the_rows_order_with_their_version(ask: Asker) -> None:
    found = ask.post("/v1/tasks/sst2:predict", {"inputs": ["short", {"sentence": "x" * 80, "id": "7"}]})
    answers = found.pop("answers")
    expected = {"task": "sst2", "version": 1, "generation": 8, "alias": "production", "labels": list(SST2.labels)}
    assert found == expected
    for answer, text in zip(answers, ("short", "x" * 80), strict=True):
        wanted: Any = rule(SST2, text)
        scores = list(wanted.scores)
        assert answer == {"label": wanted.label, "score": wanted.score, "scores": scores, "truncated": False}


def test_each_kind_has_its_answer(ask: Asker) -> None:
    tweet: Any = rule(TWEETS, "rate: fine")
    assert ask.post("/v1/tasks/tweets:predict", {"inputs": ["fine"]})["answers"] == [
        {"value": tweet.value, "truncated": False}
    ]
    assert ask.post("/v1/tasks/titles:predict", {"inputs": ["fine"]})["answers"][0]["text"] == "TITLE: FINE"
    assert len(ask.post("/v1/tasks/meaning:predict", {"inputs": ["fine"]})["answers"][0]["embedding"]) == 3


@pytest.mark.parametrize(
    ("path", "more", "alias"),
    [
        ("sst2:1", {}, None),
        ("sst2@production", {}, "production"),
        ("sst2", {"version": 1}, None),
        ("sst2", {"alias": "production"}, "production"),
    ],
)
def test_a_version_or_an_alias_is_named_in_the_path_or_the_body(
    ask: Asker, path: str, more: dict[str, Any], alias: str | None
) -> None:
    found = ask.post(f"/v1/tasks/{path}:predict", {"inputs": ["a"], **more})
    assert (found["version"], found["alias"]) == (1, alias)


def test_options_reach_the_service(ask: Asker, lounge: Parlour) -> None:
    how = {"num_beams": 4, "early_stopping": "never", "length_penalty": 0.5, "max_new_tokens": 7}
    body = {"inputs": ["a"], "priority": 1, "route_key": "user 7", "timeout": 30, "generation": how}
    ask.post("/v1/tasks/titles:predict", body)
    service = lounge.service
    assert (service.priorities[-1], service.route_keys[-1]) == (1, "user 7")
    assert service.deadlines[-1] is not None
    assert service.answerers[-1].max_new_tokens == 7
    assert service.answerers[-1].generation == Generation(num_beams=4, early_stopping="never", length_penalty=0.5)


def test_images_are_objects_with_base64(ask: Asker, lounge: Parlour) -> None:
    found = ask.post("/v1/tasks/vqa:predict", {"inputs": [{"question": "a cat?", "image": IMAGE}]})
    assert lounge.service.rows[-1] == [{"question": "a cat?", "image": CAT}]
    wanted: Any = rule(VQA, "question: a cat?")
    assert found["answers"][0]["label"] == wanted.label
    ask.events("/v1/tasks/captions:predict", {"inputs": [{"image": IMAGE}], "stream": True})
    assert lounge.service.rows[-1] == [{"image": CAT}]
    assert CAPTIONS.images == ("image",)


def test_the_same_rows_for_many_tasks_and_each_task_fails_alone(ask: Asker) -> None:
    row = {"sentence": "s", "sentence1": "a", "sentence2": "b" * 9}
    tasks = ["sst2", {"task": "rte", "version": 1}, "tweets", {"task": "sst2", "version": 9}]
    results = ask.post("/v1/predict", {"tasks": tasks, "inputs": [row]})["results"]
    assert [result["task"] for result in results] == ["sst2", "rte", "tweets", "sst2"]
    pair: Any = rule(RTE, "a / " + "b" * 9)
    assert results[1]["prediction"]["answers"][0]["label"] == pair.label
    assert results[2]["error"]["reason"] == "INVALID_INPUT"
    assert results[2]["error"]["fields"][0]["field"] == "inputs[0].text"
    assert (results[3]["error"]["status"], results[3]["error"]["reason"]) == (404, "UNKNOWN_VERSION")


@pytest.mark.parametrize("by_header", [False, True])
def test_a_text_is_streamed_as_events(ask: Asker, by_header: bool) -> None:
    body = {"inputs": ["a fine day"]} | ({} if by_header else {"stream": True})
    headers = {"Accept": "text/event-stream"} if by_header else {}
    *pieces, (name, last) = ask.events("/v1/tasks/titles:predict", body, **headers)
    assert {name for name, _ in pieces} == {"piece"}
    assert len(pieces) > 1
    assert "".join(json.loads(data)["text"] for _, data in pieces) == "TITLE: A FINE DAY"
    result = json.loads(last)
    assert (name, result["text"], result["task"], result["version"]) == ("result", "TITLE: A FINE DAY", "titles", 1)
    assert result["finish_reason"] == "end"


WRONG: list[tuple[str, Any, int, str, str]] = [
    ("sst2", {}, 400, "INVALID_INPUT", "inputs: Field required"),
    ("sst2", {"inputs": []}, 400, "INVALID_INPUT", "inputs: List should have at least 1 item"),
    ("sst2", {"inputs": "a"}, 400, "INVALID_INPUT", "inputs: Input should be a valid array"),
    ("sst2", {"inputs": ["a", 3]}, 400, "INVALID_INPUT", "inputs[1]: must be a text, or an object"),
    ("sst2", {"inputs": [{}]}, 400, "INVALID_INPUT", "inputs[0]: must be a text, or an object"),
    ("sst2", {"inputs": [{"sentence": 3}]}, 400, "INVALID_INPUT", "inputs[0].sentence: must be a text, or"),
    ("sst2", {"inputs": [{"words": "a"}]}, 400, "INVALID_INPUT", "inputs[0].sentence: is missing"),
    (
        "vqa",
        {"inputs": [{"question": "q", "image": {"b64": "#"}}]},
        400,
        "INVALID_INPUT",
        "inputs[0].image.b64: must be",
    ),
    ("rte", {"inputs": ["a"]}, 400, "INVALID_INPUT", "inputs[0]: task 'rte' needs the fields sentence1, sentence2"),
    ("sst2", {"inputs": ["a"], "colour": 1}, 400, "INVALID_INPUT", "colour: Extra inputs are not permitted"),
    (
        "sst2",
        {"inputs": ["a"], "priority": 5},
        400,
        "INVALID_INPUT",
        "priority: Input should be less than or equal to 4",
    ),
    ("sst2", {"inputs": ["a"], "timeout": 0}, 400, "INVALID_INPUT", "timeout: Input should be greater than 0"),
    ("sst2", {"inputs": ["a"], "version": "1"}, 400, "INVALID_INPUT", "version: Input should be a valid integer"),
    ("sst2", {"inputs": ["a"], "version": 1, "alias": "b"}, 400, "INVALID_INPUT", "version: is given twice"),
    ("sst2:1", {"inputs": ["a"], "version": 1}, 400, "INVALID_INPUT", "version: is given twice"),
    ("sst2", {"inputs": ["a"], "stream": True}, 400, "INVALID_INPUT", "task: 'sst2' is classification: only texts"),
    ("titles", {"inputs": ["a", "b"], "stream": True}, 400, "INVALID_INPUT", "inputs: has 2 rows; a stream is"),
    ("titles", {"inputs": [{"a": "b"}], "stream": True}, 400, "INVALID_INPUT", "inputs[0].body: is missing"),
    ("titles", {"inputs": ["a"], "generation": {"num_beams": 99}}, 400, "INVALID_INPUT", "generation.num_beams: Input"),
    ("sst2", {"inputs": ["a"], "generation": {"top_k": 1}}, 400, "INVALID_INPUT", "generation.top_k: is for text"),
    ("sst2:x", {"inputs": ["a"]}, 400, "INVALID_NAME", "TASK:version"),
    ("nope", {"inputs": ["a"]}, 404, "UNKNOWN_TASK", "nope"),
    ("sst2:9", {"inputs": ["a"]}, 404, "UNKNOWN_VERSION", "9"),
    ("sst2@beta", {"inputs": ["a"]}, 404, "UNKNOWN_ALIAS", "beta"),
    ("rte", {"inputs": [{"sentence1": "a", "sentence2": "b"}] * 6}, 400, "TOO_MANY_ROWS", "6 rows"),
    ("sst2", {"inputs": ["a"] * 8193}, 400, "TOO_MANY_ROWS", "8193 rows in one request, the limit is 8192"),
]


@pytest.mark.parametrize(("task", "body", "status", "reason", "detail"), WRONG)
def test_each_mistake_is_told(ask: Asker, task: str, body: Any, status: int, reason: str, detail: str) -> None:
    found = ask.problem(f"/v1/tasks/{task}:predict", body)
    assert found[:2] == (status, reason)
    assert detail in found[2]


def test_tasks_are_described_with_what_serves_them(ask: Asker) -> None:
    tasks = {task["task"]: task for task in ask.get("/v1/tasks")["tasks"]}
    assert tasks["sst2"] == ask.get("/v1/tasks/sst2")
    sst2 = tasks["sst2"]
    assert (sst2["kind"], sst2["fields"], sst2["labels"]) == ("classification", ["sentence"], list(SST2.labels))
    assert sst2["aliases"] == {"production": 1}
    assert [(version["version"], version["resident"]) for version in sst2["versions"]] == [(1, True)]
    assert (tasks["tweets"]["low"], tasks["tweets"]["high"]) == (-4, 4)
    assert tasks["nlvr"]["images"] == ["left", "right"]
    assert tasks["meaning"]["dimensions"] == 3
    response = ask("GET", "/v1/tasks/nope")
    assert (response.status_code, response.json()["reason"]) == (404, "UNKNOWN_TASK")
