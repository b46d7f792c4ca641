"""`--quantize` from end to end: train, evaluate, publish, doctor, serve, with the real commands."""

import json
import os
from pathlib import Path

import pytest

from serving.client.client import Client
from side_registry import read_artifact
from tests.sidecast.cli_kit import Serving, done, sidecast
from tests.training import toy

TASK = """
name = "letters"
kind = "classification"
template = "{sentence}"
labels = ["aa", "bb"]
"""


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SIDECAST_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> Path:
    """A published run that was trained on eight bits."""
    folder = tmp_path_factory.mktemp("house")
    (folder / "letters.toml").write_text(TASK, encoding="utf-8")
    toy.write(folder / "train.jsonl", toy.rows(toy.CLASSES, 64))
    toy.write(folder / "validation.jsonl", toy.rows(toy.CLASSES, 30, seed=1))
    done(*train(folder, tiny_t5), "--output", folder / "run", "--quantize", "int8")
    done("publish", folder / "run", "--registry", folder / "registry")
    return folder


def train(house: Path, backbone: Path) -> tuple[object, ...]:
    rows = ("--train", house / "train.jsonl", "--validation", house / "validation.jsonl")
    return ("train", house / "letters.toml", "--backbone", backbone, *rows, "--reduction", 4, "--epochs", 1, "--json")


def evaluate(house: Path, *words: object) -> tuple[object, ...]:
    return ("evaluate", "letters", "--data", house / "validation.jsonl", *words, "--json")


def test_a_run_remembers_its_bits_and_is_evaluated_with_them(house: Path, tiny_t5: Path) -> None:
    manifest = read_artifact(house / "run").manifest
    assert manifest.backbone.quantization == "int8"
    assert json.loads((house / "run" / "run.json").read_text())["settings"]["quantize"] == "int8"
    by_run = done(*evaluate(house, "--run", house / "run")).document
    by_registry = done(*evaluate(house, "--registry", house / "registry", "--backbone", tiny_t5)).document
    assert by_run["score"] == by_registry["score"] == manifest.metrics["accuracy"]


def test_other_bits_are_a_mistake_in_one_line(house: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = sidecast(*evaluate(house, "--run", house / "run", "--quantize", "none"))
    assert told.code == 2
    assert "load it with --quantize int8" in told.err
    again = sidecast(*train(house, tiny_t5), "--output", house / "run")
    assert again.code == 2
    assert "another backbone, quantize" in again.err
    monkeypatch.setenv("SIDECAST_QUANTIZE", "int3")
    assert "SIDECAST_QUANTIZE" in sidecast(*train(house, tiny_t5), "--output", house / "other").err


def test_doctor_says_the_bits_and_what_does_not_fit(house: Path, tiny_t5: Path) -> None:
    asked = ("doctor", "--backbone", tiny_t5, "--registry", house / "registry", "--json")
    sound = done(*asked, "--quantize", "int8").document
    details = {each["check"]: each["detail"] for each in sound["checks"]}
    assert f"{tiny_t5.name} (int8): " in details["backbone"]
    ill = sidecast(*asked)
    assert ill.code == 1
    assert "another --quantize: letters@production" in ill.out


def test_a_side_network_that_is_only_begun_belongs_to_the_bits_too(tiny_t5: Path, tmp_path: Path) -> None:
    for quantize in ("int8", "none"):
        made = ("init", "--backbone", tiny_t5, "--output", tmp_path / quantize, "--init", "magnitude")
        done(*made, "--reduction", 4, "--quantize", quantize)
        assert read_artifact(tmp_path / quantize).manifest.backbone.quantization == quantize


@pytest.mark.slow
def test_a_server_answers_on_the_same_bits_and_refuses_on_others(house: Path, tiny_t5: Path, tmp_path: Path) -> None:
    row = {"sentence": "aabba"}
    given = ("--backbone", tiny_t5, "--registry", house / "registry")
    with Serving(tmp_path, *given, "--quantize", "int8") as serving, Client(serving.address) as client:
        [answer] = client.predict("letters", [row])
        assert answer.label in ("aa", "bb")
        assert serving.stop() == 0
    with Serving(tmp_path, *given) as serving, Client(serving.address) as client:
        [version] = client.task("letters").versions
        assert "serve with --quantize int8" in str(version.failure)
        assert serving.stop() == 0
