"""`/v1/groups` and `/v1/residents`: groups asked as one, and what a server has loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.api_kit import RTE, SST2, TOPICS, Parlour, rule
from tests.serving.http_api.kit import Asker

TEXT = "x" * 55


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    folder: Path = tmp_path_factory.mktemp("groups")
    parlour = Parlour(folder, (SST2, TOPICS, RTE), http_port=None)
    parlour.registry.set_group("guard", ["sst2:1", "topics"])
    with parlour.open():
        asker = Asker(parlour)
        yield asker
        asker.close()


def test_a_group_answers_with_all_its_tasks(ask: Asker) -> None:
    found = ask.post("/v1/groups/guard:predict", {"inputs": [TEXT]})
    assert (found["group"], found["version"]) == ("guard", 1)
    sst2, topics = found["results"]
    wanted: Any = rule(SST2, TEXT)
    assert (sst2["task"], sst2["prediction"]["answers"][0]["label"]) == ("sst2", wanted.label)
    wanted = rule(TOPICS, TEXT)
    [answer] = topics["prediction"]["answers"]
    assert (answer["labels"], answer["scores"]) == (["art", "war"], list(wanted.scores))
    assert ask.get("/v1/groups") == {"groups": [{"group": "guard", "version": 1, "tasks": ["sst2:1", "topics"]}]}
    assert ask.problem("/v1/groups/gard:predict", {"inputs": [TEXT]})[:2] == (404, "UNKNOWN_GROUP")


def test_a_group_is_a_model_with_an_output_for_each_task(ask: Asker) -> None:
    tensor = {"name": "sentence", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    found = ask.post("/v2/models/group/guard/infer", {"inputs": [tensor]})
    assert (found["model_name"], [output["name"] for output in found["outputs"]]) == (
        "group/guard",
        ["sst2", "topics"],
    )
    assert found["outputs"][1]["data"] == ['["art", "war"]']
    assert ask.get("/v2/models/group/guard")["versions"] == ["1"]
    assert ask.get("/v2/models/group/guard/ready") == {"name": "group/guard", "ready": True}


def test_several_labels_are_classified_in_vllms_shape(ask: Asker) -> None:
    found = ask.post("/classify", {"model": "topics", "input": [TEXT]})
    scores = list(rule(TOPICS, TEXT).scores)  # type: ignore[union-attr]
    assert found["data"] == [{"index": 0, "label": "war", "labels": ["art", "war"], "probs": scores, "num_classes": 3}]


def test_what_is_loaded_is_told_with_when_it_was_asked(ask: Asker) -> None:
    ask.post("/v1/tasks/sst2:predict", {"inputs": [TEXT]})
    found = ask.get("/v1/residents")
    assert (found["device"], found["others"]) == ("cpu", [])
    rte, sst2, _ = found["residents"]
    assert (rte["task"], rte["version"], rte["requests"], rte["last_asked"]) == ("rte", 1, 0, None)
    assert sst2["requests"] > 0
    assert sst2["last_asked"] >= sst2["since"]
