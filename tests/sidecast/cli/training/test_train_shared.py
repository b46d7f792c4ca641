"""`sidecast train` with several tasks: a file for each, one side network for all, and recipes by name."""

from pathlib import Path

import pytest

from side_registry import read_artifact
from tests.sidecast.cli.house import House
from tests.sidecast.cli_kit import done, sidecast
from tests.training import toy

ECHO = """
name = "echo"
kind = "text"
template = "{sentence}"
max_new_tokens = 6
"""


@pytest.fixture(scope="module")
def words(house: House, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A command line for two tasks with a file each; without an output."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "echo.toml").write_text(ECHO, encoding="utf-8")
    data = toy.write(folder / "echo.jsonl", toy.rows(toy.TEXTS, 32))
    return [
        *("train", house / "letters.toml", folder / "echo.toml", "--backbone", house / "t5", "--reduction", 4),
        *("--train", f"letters={house / 'train.jsonl'}", "--train", f"echo={data}"),
        *("--validation", f"letters={house / 'validation.jsonl'}", "--validation", f"echo={data}", "--epochs", 1),
    ]


def test_shared_makes_a_run_folder_of_each_task(house: House, words: list[object], tmp_path: Path) -> None:
    shared = [*words, "--shared", "--output", tmp_path / "run"]
    ran = done(*shared)
    told = ran.out.splitlines()
    assert [line.split(":")[0] for line in told[::2]] == ["letters", "echo"]
    folder = tmp_path / "run" / "letters"
    assert told[1] == f"{folder} is ready: sidecast publish {folder} --registry R"
    assert "shared: epoch 1/1" in ran.err
    runs = done(*shared, "--json").document["runs"]
    assert [run["run"] for run in runs] == [str(tmp_path / "run" / name) for name in ("letters", "echo")]
    artifacts = [read_artifact(run["run"]) for run in runs]
    assert artifacts[0].side_network.read_bytes() == artifacts[1].side_network.read_bytes()
    scored = done("evaluate", "letters", "--data", house / "validation.jsonl", "--run", runs[0]["run"], "--json")
    assert scored.document["score"] == pytest.approx(runs[0]["score"])
    assert done("publish", runs[1]["run"], "--registry", tmp_path / "registry", "--json").document["version"] == 1


def test_a_file_for_each_task_without_sharing(words: list[object], tmp_path: Path) -> None:
    done(*words, "--output", tmp_path / "{task}")
    for name, head in (("letters", "linear"), ("echo", "text")):
        assert read_artifact(tmp_path / name).manifest.side["head"] == head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--shared", "--output", "runs/{task}"], "name one folder"),
        (["--output", "runs"], "or --shared, for one side network of all"),
        (["--shared", "--output", "runs", "--train", "echo=x.jsonl"], "--train is given twice for echo"),
        (["--shared", "--output", "runs", "--train", "x.jsonl"], "x.jsonl names no task; write --train TASK=FILE"),
        (["--shared", "--output", "runs", "--head", "linear"], "head must be text where tasks share a side network"),
        (["--shared", "--output", "runs", "--recipe", "papr"], "'papr' is not one of 'default', 'paper'"),
    ],
)
def test_what_several_tasks_cannot_have(words: list[object], change: list[str], message: str) -> None:
    assert message in sidecast(*words, *change).mistake


def test_a_task_without_a_file(words: list[object], tmp_path: Path) -> None:
    place = next(number for number, word in enumerate(words) if str(word).startswith("echo="))
    kept = [*words[: place - 1], *words[place + 1 :]]
    told = sidecast(*kept, "--shared", "--output", tmp_path / "run").mistake
    assert "--train has no file for echo; add --train echo=FILE" in told
    assert not (tmp_path / "run").exists()


def test_shared_needs_two_tasks(house: House, tmp_path: Path) -> None:
    words = house.words("train @/letters.toml --backbone @/t5 --train @/train.jsonl --validation-share 10% --shared")
    assert "--shared needs two tasks or more" in sidecast(*words, "--output", tmp_path / "run").mistake


def test_the_papers_recipe_with_given_settings(words: list[object], tmp_path: Path) -> None:
    changed = ["--recipe", "paper", "--batch-rows", 16, "--seed", 2]
    done(*words, "--shared", "--output", tmp_path / "run", *changed)
    manifest = read_artifact(tmp_path / "run" / "echo").manifest
    recipe = manifest.provenance["recipe"]
    assert (recipe["learning_rate"], recipe["optimizer"], recipe["init"]) == (3e-3, "reference", "fisher")
    assert (recipe["reduction"], recipe["batch_rows"], recipe["seed"], recipe["epochs"]) == (4, 16, 2, 1)
    assert recipe["warmup"] == 1.0
    assert manifest.side.get("tap_norm", "none") == "none"
