"""`sidecast compare`: its options, and what it says of mistakes."""

from pathlib import Path

import click
import pytest

from sidecast.cli.training.compare import compare
from tests.sidecast.cli_kit import done, sidecast
from tests.training import toy


def words(folder: Path, tiny_t5: Path, *more: str) -> list[object]:
    task = 'name = "letters"\nkind = "classification"\ntemplate = "{sentence}"\nlabels = ["aa", "bb"]\n'
    (folder / "letters.toml").write_text(task, encoding="utf-8")
    rows = toy.write(folder / "rows.jsonl", toy.rows(toy.CLASSES, 12))
    files = ["--train", rows, "--validation", rows, "--backbone", tiny_t5, "--output", folder / "out"]
    return ["compare", folder / "letters.toml", *files, "--epochs", "1", *more]


def test_the_command_prints_the_methods_of_its_choice(tiny_t5: Path, tmp_path: Path) -> None:
    ran = done(
        *words(tmp_path, tiny_t5, "--methods", "majority,attention-probe", "--lr", "attention-probe=1e-2", "--json")
    )
    assert [row["method"] for row in ran.document["methods"]] == ["majority", "attention-probe"]
    assert ran.document["runs"][1]["run_info"]["train_config"]["learning_rate"] == 1e-2


def test_a_figure_stands_for_its_methods() -> None:
    [methods] = [option for option in compare.params if option.name == "methods"]
    given = methods.process_value(click.Context(compare), "figure-8,majority,lst")
    assert given == ("lst", "lst-no-taps", "side-tuning", "majority")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--methods", "lora,magic"), "'magic' is no method"),
        (("--seeds", "0,x"), "give seeds such as 0,1,2"),
        (("--lr", "lora"), "give METHOD=RATE"),
        (("--lr", "majority=1"), "no method that trains"),
    ],
)
def test_a_mistake_is_one_line(tiny_t5: Path, tmp_path: Path, more: tuple[str, str], why: str) -> None:
    assert why in sidecast(*words(tmp_path, tiny_t5, *more)).mistake


def test_without_peft_it_says_what_to_install(tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert "pip install 'sidecast[compare]'" in sidecast(*words(tmp_path, tiny_t5, "--methods", "lora")).mistake


def test_an_unknown_label_is_a_mistake(tiny_t5: Path, tmp_path: Path) -> None:
    given = words(tmp_path, tiny_t5)
    toy.write(tmp_path / "rows.jsonl", [{"sentence": "ab", "label": "cc"}])
    assert "cc" in sidecast(*given).mistake
