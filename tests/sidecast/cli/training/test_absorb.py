"""`sidecast absorb`: models in, versions and figures out; a model that fails the gate is not published."""

import json

import pytest

from tests.sidecast.cli.house import House
from tests.training.teachers import make_teacher


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return make_teacher(tmp_path_factory.mktemp("models") / "letters-bert")


ABSORB = "--backbone @/t5 --texts @/train.jsonl --field sentence --epochs 1 --reduction 4 --json"


def test_absorb_publishes_what_passes(house: House, model, tmp_path):
    registry = tmp_path / "registry"
    words = f"absorb {model} @/letters.toml={model} {ABSORB} --agreement 0 --output {tmp_path}/runs"
    ran = house.run(f"{words} --labelled @/validation.jsonl --rename label=label --registry {registry}")
    assert ran.code == 0, ran.err
    models = ran.document["models"]
    assert [(one["task"], one["version"]) for one in models] == [("letters-bert", 1), ("letters", 1)]
    assert all({"agreement", "accuracy", "teacher_accuracy"} == set(one["measured"]) for one in models)
    assert ran.document["savings"]["models"] == 2
    listed = house.run(f"tasks --registry {registry} --json")
    assert "letters-bert" in listed.out


def test_absorb_does_not_publish_what_fails(house: House, model, tmp_path):
    words = f"absorb {model} {ABSORB} --within 0 --labelled @/validation.jsonl --output {tmp_path}/runs --lr 1e-9"
    ran = house.run(words)
    error = json.loads(ran.err.splitlines()[-1])["error"]
    assert (ran.code, error["reason"]) == (1, "GATE_REFUSED")
    assert ran.document["models"][0]["version"] is None


def test_absorb_says_what_is_missing(house: House, model, tmp_path):
    ran = house.run(f"absorb {model} {ABSORB} --within 0.5 --output {tmp_path}/runs")
    assert "--within compares scores on rows with targets" in ran.err
    ran = house.run(f"absorb {model} {ABSORB} --alias canary --output {tmp_path}/runs")
    assert "--alias needs --registry" in ran.err
    ran = house.run(f"absorb {tmp_path}/nothing {ABSORB} --output {tmp_path}/runs")
    assert json.loads(ran.err)["error"]["reason"] == "BAD_TEACHER"
