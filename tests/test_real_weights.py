"""The real backbone on real text: a short training beats chance, and a server answers what the run folder does."""

import json
from pathlib import Path

import pytest

from sidecast import Classification, Client
from tests.paths import glue_file
from tests.sidecast.cli_kit import Serving, done

pytestmark = [pytest.mark.slow, pytest.mark.real_weights, pytest.mark.timeout(900)]  # first, the backbone comes

TRAINING, HELD_OUT = 300, 100


def first_rows(source: Path, target: Path, count: int) -> list[dict[str, str]]:
    with source.open(encoding="utf-8") as file:
        lines = [next(file) for _ in range(count)]
    target.write_text("".join(lines), encoding="utf-8")
    return [json.loads(line) for line in lines]


def test_a_short_training_beats_chance_and_serves_what_it_learned(tmp_path: Path, real_backbone: Path) -> None:
    first_rows(glue_file("sst2", "train"), tmp_path / "train.jsonl", TRAINING)
    rows = first_rows(glue_file("sst2", "validation"), tmp_path / "validation.jsonl", HELD_OUT)
    run, registry, held_out = tmp_path / "run", tmp_path / "registry", tmp_path / "validation.jsonl"

    files = ["--train", tmp_path / "train.jsonl", "--validation", held_out, "--output", run]
    settings = ["--epochs", 1, "--batch-rows", 8]
    trained = done("train", "sst2", "--backbone", real_backbone, *files, *settings, "--json").document
    assert trained["score"] >= 0.65

    answers = tmp_path / "answers.jsonl"
    scored = done("evaluate", "sst2", "--data", held_out, "--run", run, "--predictions", answers, "--json").document
    assert scored["score"] == pytest.approx(trained["score"])
    expected = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]

    done("publish", run, "--registry", registry)
    with (
        Serving(tmp_path, "--backbone", real_backbone, "--registry", registry, "--threads", 1) as server,
        Client(server.address) as client,
    ):
        found = client.predict("sst2", [row["sentence"] for row in rows])
        assert server.stop() == 0
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, Classification)
        assert ours.label == theirs["label"]
        assert ours.scores == pytest.approx(theirs["scores"], abs=1e-4)
