"""A backbone of every family is trained on by the command, published, and loaded by a server's loader."""

import json
import random
from pathlib import Path

import pytest

from ladder import ClassAnswer, Row, answer, load_backbone, load_tokenizer
from serving.config import LoadConfig
from serving.versions.loader import Loader
from side_registry import Registry
from tests import families
from tests.sidecast.cli_kit import done, sidecast
from training.evaluation import load_model, predict


def write_reviews(path: Path, count: int, seed: int) -> list[str]:
    """Rows in SST-2's fields; a positive one is made of other letters than a negative one."""
    pick, sentences = random.Random(seed), []
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            positive = pick.random() < 0.5
            sentences.append("".join(pick.choices("aeiou" if positive else "rstvx", k=pick.randint(4, 12))))
            label = "positive" if positive else "negative"
            file.write(json.dumps({"sentence": sentences[-1], "label": label}) + "\n")
    return sentences


@pytest.mark.parametrize(
    ("kind", "head", "least"),
    [
        ("bart", "mlp", 0.8),
        pytest.param("byt5", "text", 0.7, marks=pytest.mark.slow),
        pytest.param("bart", "auto", 0.8, marks=pytest.mark.slow),
        pytest.param("umt5", "text", 0.7, marks=pytest.mark.slow),
    ],
)
def test_trains_publishes_and_loads(tmp_path: Path, kind: str, head: str, least: float) -> None:
    folder = families.make(kind, tmp_path / "backbone")
    write_reviews(tmp_path / "train.jsonl", 100, 0)
    held_out = write_reviews(tmp_path / "held_out.jsonl", 40, 1)
    files = ["--train", tmp_path / "train.jsonl", "--validation", tmp_path / "held_out.jsonl"]
    settings = ["--head", head, "--epochs", 3, "--batch-rows", 8, "--lr", 1e-2, "--reduction", 4, "--dropout", 0]
    trained = done("train", "sst2", "--backbone", folder, *files, "--output", tmp_path / "run", *settings, "--json")
    assert trained.document["score"] >= least

    registry = Registry.open(tmp_path / "registry", create=True)
    registry.publish(tmp_path / "run")
    backbone, tokenizer = load_backbone(folder), load_tokenizer(folder)
    resident = Loader(registry, backbone, tokenizer, LoadConfig()).load("sst2", 1)
    rows = [
        Row(ids=tuple(ids), side=resident.side, answerer=resident.answerer) for ids in tokenizer.encode_batch(held_out)
    ]
    served = answer(backbone, rows)
    model = load_model(registry.download("sst2", 1, tmp_path / "again"), backbone, tokenizer)
    for ours, theirs in zip(
        served, predict(model, backbone, tokenizer, [{"sentence": text} for text in held_out]), strict=True
    ):
        assert isinstance(ours, ClassAnswer)
        assert isinstance(theirs, ClassAnswer)
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)


def test_a_text_head_where_there_is_no_decoder_is_a_mistake_in_one_line(tmp_path: Path) -> None:
    folder = families.make("bart", tmp_path / "backbone")
    write_reviews(tmp_path / "train.jsonl", 20, 0)
    files = [
        "--train",
        tmp_path / "train.jsonl",
        "--validation",
        tmp_path / "train.jsonl",
        "--output",
        tmp_path / "run",
    ]
    ran = sidecast("train", "sst2", "--backbone", folder, *files, "--head", "text")
    assert "no decoder here" in ran.mistake
