"""`sidecast publish` behind a gate: exit code 1 and figures, or a version that keeps them."""

import json
from pathlib import Path

import pytest

from side_registry import Registry
from tests.serving.api_kit import Parlour
from tests.sidecast.cli.house import EVALUATE, House
from tests.sidecast.cli_kit import done, sidecast
from tests.training import toy


def test_the_figures_are_those_of_evaluate_and_stay_with_the_version(house: House, registry: Path) -> None:
    scores = done(*house.words(EVALUATE), "--run", house / "run-1", "--json").document["metrics"]
    other = done(*house.words(EVALUATE), "--run", house / "run-2", "--json").document["metrics"]
    worse, better = ("run-1", "run-2") if scores["accuracy"] < other["accuracy"] else ("run-2", "run-1")
    done("publish", house / worse, "--registry", registry, "--promote")
    gate = ["--registry", registry, "--data", house / "validation.jsonl", "--better-than", "production"]
    document = done("publish", house / better, *gate, "--require", "accuracy > 0.01", "--json").document
    manifest = Registry.open(registry).manifest("letters", document["version"])
    assert manifest.provenance["publish_gate"] == document["gate"]
    measured = (scores if better == "run-1" else other)["accuracy"]
    assert document["gate"]["measured"] == {"accuracy": measured}
    assert document["gate"]["better_than"]["rival"]["measured"] == {
        "accuracy": min(scores["accuracy"], other["accuracy"])
    }
    history = done("history", "letters", "--registry", registry, "--limit", 1).out
    assert f"gate: accuracy {measured:.4f} on 30 rows; required accuracy>0.01; better than production" in history


def test_a_run_that_does_not_pass_is_refused_with_exit_code_1(house: House, registry: Path) -> None:
    generation = Registry.open(registry).state().generation
    gate = ["--registry", registry, "--data", house / "validation.jsonl"]
    refused = sidecast("publish", house / "run-1", *gate, "--require", "accuracy>=1.5")
    assert (refused.code, refused.out) == (1, "")
    [line] = refused.err.splitlines()[-1:]
    assert line.startswith("Error: letters is not published: accuracy is 0.")
    assert line.endswith("required is >= 1.5 (measured on 30 rows)")
    as_json = sidecast("publish", house / "run-1", *gate, "--better-than", "production", "--json")
    assert as_json.code == 1
    assert json.loads(as_json.err)["error"]["reason"] == "GATE_REFUSED"
    assert Registry.open(registry).state().generation == generation


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--require accuracy>=0.9", "--require and --better-than need --data FILE"),
        ("--data @/validation.jsonl", "--data is for a gate; give --require or --better-than too"),
        ("--data @/validation.jsonl --require accuracy=1", "no requirement; write a score"),
        ("--data @/validation.jsonl --require bleu>=1", "no score 'bleu'; it has accuracy, matthews"),
        ("--data @/nothing.jsonl --require accuracy>=0", "nothing.jsonl: No such file or directory"),
        ("--data @/letters.toml --require accuracy>=0", "letters.toml"),
        ("--data @/validation.jsonl --better-than canary", "has no alias 'canary'; its aliases: production"),
    ],
)
def test_a_mistaken_gate_is_one_line(house: House, registry: Path, words: str, message: str) -> None:
    ran = sidecast("publish", house / "run-1", "--registry", registry, *house.words(words))
    assert message in ran.mistake


def test_a_first_version_has_nothing_to_be_better_than(house: House, tmp_path: Path) -> None:
    gate = ["--data", house / "validation.jsonl", "--better-than", "production"]
    ran = done("publish", house / "run-1", "--registry", tmp_path / "new", *gate)
    assert "no production yet to be better than" in ran.out


def test_on_a_server_its_own_answers_are_the_rival(house: House, tmp_path: Path) -> None:
    with Parlour(tmp_path, (toy.CLASSES,)).open() as parlour:
        theirs = done(*house.words(EVALUATE), "--server", parlour.address, "--json").document["score"]
        gate = ["--server", parlour.address, "--data", house / "validation.jsonl", "--better-than", "production"]
        ran = sidecast("publish", house / "run-1", *gate, "--json")
        ours = done(*house.words(EVALUATE), "--run", house / "run-1", "--json").document["score"]
        assert ran.code == int(ours <= theirs)
        if ours > theirs:
            assert ran.document["gate"]["better_than"]["rival"] == {"version": 1, "measured": {"accuracy": theirs}}
