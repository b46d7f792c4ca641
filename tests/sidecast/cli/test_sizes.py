"""`sidecast doctor --sizes`: a table for people, numbers for machines, mistakes in one line."""

import json
import re
from pathlib import Path

import pytest

from tests.sidecast.cli_kit import ROOT, done, sidecast


def test_a_name_is_enough(tmp_path: Path) -> None:
    words = ("doctor", "--sizes", "--backbone", "t5-base", "--reduction", "8", "--tokens", 16, "--rows", 2)
    document = done(*words, "--json").document
    assert document["backbone"] == {"name": "t5-base", "parameters": 222_903_552}
    assert document["load"] == {"tokens": 16, "rows": 2, "new_tokens": 1, "dtype": "bfloat16"}
    found = {(row["rungs"], row["head"]): row for row in document["sizes"]}
    assert len(found) == 3 * 2
    full = found["all", "text"]
    assert (full["parameters"], full["fp32_bytes"]) == (5_097_240, 4 * 5_097_240)
    assert found["every 2nd", "text"]["encoder_layers"] == [1, 3, 5, 7, 9, 11]
    assert found["last half", "linear"]["decoder_layers"] == []
    assert 0 < found["last half", "linear"]["side_flops"] < full["side_flops"] < full["backbone_flops"]
    assert 2 * 222_903_552 < full["serving_bytes"] < full["training_bytes"]


def test_the_authors_layers_and_count() -> None:
    layers = "1,2,3,5,6,7,9,10,11"
    words = ("doctor", "--sizes", "--backbone", "t5-base", "--reduction", "8", "--tokens", 8, "--rows", 1)
    given = done(*words, "--encoder-layers", layers, "--decoder-layers", layers, "--json").document["sizes"]
    assert [(row["rungs"], row["head"]) for row in given] == [("given", "text"), ("given", "linear")]
    assert (given[0]["parameters"], given[0]["reference_parameters"]) == (3_878_706, 3_878_712)


def test_a_folder_needs_its_config_alone(tmp_path: Path, tiny_t5: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_t5 / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    ran = done("doctor", "--sizes", "--backbone", tmp_path, "--tokens", 8, "--rows", 2)
    title, headings, *rows = ran.out.splitlines()
    assert "2 rows of 8 tokens at a time" in title
    assert "training GB" in headings
    assert len(rows) == 2 * 3 * 2  # r 16 is more than this backbone's d_kv
    assert rows[0].split()[:3] == ["4", "all", "text"]


def test_a_backbone_without_a_decoder_has_no_text_head(tmp_path: Path) -> None:
    config = {"model_type": "bart", "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2}
    config |= {"encoder_ffn_dim": 32, "vocab_size": 50, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = ("doctor", "--sizes", "--backbone", tmp_path, "--reduction", 4, "--tokens", 8, "--rows", 2)
    assert {row["head"] for row in done(*words, "--json").document["sizes"]} == {"linear"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("doctor --sizes", "--sizes needs --backbone B: a folder, a hub id, or a name such as t5-base"),
        ("doctor --sizes --backbone t6-base", "there is no folder t6-base"),
        ("doctor --tokens 5", "--tokens is for --sizes; give both"),
        ("doctor --encoder-layers 1", "--encoder-layers is for --sizes; give both"),
        ("doctor --sizes --backbone t5-small --reduction eight", "give whole numbers such as 4,8,16; got 'eight'"),
        ("doctor --sizes --backbone t5-small --reduction 0", "reduction must be >= 1, got 0"),
        ("doctor --sizes --backbone t5-small --reduction 100", "reduction must be at most d_kv 64, got 100"),
        ("doctor --sizes --backbone t5-small --encoder-layers 6", "encoder_layers must be within 0..5"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str) -> None:
    assert message in sidecast(*words.split()).mistake


@pytest.mark.slow
def test_the_documented_table_is_what_the_command_prints() -> None:
    page = (ROOT / "docs/models/tasks.md").read_text(encoding="utf-8")
    [table] = re.findall(r"^(t5-base: .*?)```", page, re.MULTILINE | re.DOTALL)
    documented = table.splitlines()
    printed = [line.rstrip() for line in done("doctor", "--sizes", "--backbone", "t5-base").out.splitlines()]
    assert documented[:2] == printed[:2]
    assert len(documented) > 2
    assert set(documented[2:]) <= set(printed[2:])
