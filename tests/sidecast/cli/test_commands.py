"""Every command through its real entry: help, and each mistake in one line."""

import json

import click
import pytest

from serving.client.channel import RETRY_POLICY
from side_registry import Registry
from sidecast.cli.app import COMMANDS, app
from tests.sidecast.cli.house import EVALUATE, NOBODY, TRAIN, House
from tests.sidecast.cli_kit import done, python


def test_alone_it_shows_the_commands() -> None:
    for words in ((), ("--help",), ("-h",)):
        shown = done(*words).out
        assert all(name in shown for name in COMMANDS)
    assert done("--version").out.startswith("sidecast, version ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str) -> None:
    known = app.get_command(click.Context(app), command)
    for words in [[command, each] for each in known.commands] if isinstance(known, click.Group) else [[command]]:
        shown = done(*words, "--help").out
        assert f"Usage: sidecast {' '.join(words)}" in shown
        assert "--json" in shown


def test_as_a_process_of_its_own(house: House) -> None:
    ran = python("-m", "sidecast.cli", "tasks", "--registry", house / "registry")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "letters" in ran.stdout
    ran = python("-m", "sidecast.cli", "tasks", "--registry", house / "nothing", "--json")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert json.loads(ran.stderr)["error"]["reason"] == "REGISTRY_NOT_FOUND"


def test_looking_at_a_registry_does_not_wait_for_torch(house: House) -> None:
    for words in (["tasks"], ["history"], ["promote", "letters", "1"]):
        arguments = [*words, "--registry", str(house / "registry")]
        code = f"import sys; from sidecast.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
        ran = python("-c", f"{code}sys.exit('torch' in sys.modules)")
        assert (ran.returncode, ran.stderr) == (0, "")


MISTAKES = [
    ("unknown", "No such command 'unknown'"),
    ("tasks --unknown", "No such option '--unknown'"),
    ("tasks @/registry", "unexpected extra argument"),
    ("train", "Missing argument 'TASK...'"),
    ("train letters", "Missing option '--backbone'"),
    ("train letters --backbone @/t5 --train @/train.jsonl", "Missing option '--output'"),
    ("promote letters --registry @/registry", "Missing argument 'VERSION'"),
    ("predict letters", "Missing argument 'TEXT...'"),
    ("predict letters a", "Missing option '--server'"),
    ("tasks", "give one of --registry, --server; got none"),
    (f"tasks --registry @/registry --server {NOBODY}", "got --registry and --server"),
    (f"{EVALUATE} --run @/run-1 --registry @/registry", "got --run and --registry"),
    (EVALUATE, "give one of --run, --registry, --server; got none"),
    ("publish @/run-1", "got none"),
    # registries
    ("tasks --registry @/nothing", "there is no registry at"),
    ("tasks --registry @/t5", "is not a registry: it holds other files"),
    ("tasks --registry @/letters.toml", "is not a registry: it is a file"),
    ("tasks --registry what://ever", "is not a registry"),
    ("publish @/run-1 --registry @/t5", "is not a registry"),
    ("history lettres --registry @/registry", "there is no task 'lettres'; did you mean 'letters'?"),
    ("promote lettres 1 --registry @/registry", "there is no task 'lettres'"),
    ("promote letters 9 --registry @/registry", "task 'letters' has no version 9; use one of 2, 1"),
    ("promote letters one --registry @/registry", "Invalid value for '[VERSION]': 'one'"),
    ("promote letters 1 --alias 7 --registry @/registry", "'7' is no valid alias"),
    ("rollback letters --registry @/registry", "has no earlier version to go back to"),
    ("rollback letters --alias canary --registry @/registry", "has no alias 'canary'; its aliases: production"),
    ("rollback letters --to 2 --registry @/registry", "was not version 2 before; promote version 2 instead"),
    ("retire letters 1 --registry @/registry", "is in use as production"),
    ("retire letters 9 --registry @/registry", "has no version 9"),
    # runs
    ("publish @/nothing --registry @/registry", "there is no such folder"),
    ("publish @/t5 --registry @/registry", "it has no manifest.json, name the folder of a finished run"),
    (f"publish @/nothing --server {NOBODY}", "there is no such folder"),
    (f"{EVALUATE} --run @/nothing", "there is no such folder"),
    (f"{EVALUATE} --run @/t5", "it has no manifest.json"),
    ("evaluate sst2 --data @/validation.jsonl --run @/run-1", "is a run of task letters, not of sst2"),
    (f"{EVALUATE} --run @/run-1 --backbone @/other-t5", "trained on t5, another backbone than other-t5"),
    (f"{EVALUATE} --run @/run-1 --backbone @/nothing", "there is no folder"),
    (f"{EVALUATE} --run @/run-1 --predictions @/nothing/a", "cannot be written: No such file or directory"),
    ("evaluate letters --data @/nothing.jsonl --run @/run-1", "nothing.jsonl: No such file or directory"),
    (f"{EVALUATE} --registry @/registry", "--registry needs --backbone"),
    (f"{EVALUATE} --registry @/registry --backbone @/other-t5", "another backbone than other-t5"),
    ("evaluate sst2 --data @/train.jsonl --registry @/registry --backbone @/t5", "there is no task 'sst2'"),
    ("evaluate letters@canary --data @/train.jsonl --registry @/registry --backbone @/t5", "has no alias 'canary'"),
    ("evaluate letters:9 --data @/train.jsonl --registry @/registry --backbone @/t5", "has no version 9"),
    ("evaluate letters:x --data @/train.jsonl --registry @/registry --backbone @/t5", "'letters:x' is no valid"),
    # training
    (f"{TRAIN} --output @/run-1 --seed 7", "another recipe (epochs 1, not 3; seed 1, not 7); choose"),
    (f"{TRAIN} --output @/t5", "it is no run folder"),
    (f"{TRAIN} --output @/train.jsonl", "cannot be written (File exists); choose another --output"),
    (f"{TRAIN} --output @/new --lr 0", "learning_rate must be > 0, got 0.0"),
    (f"{TRAIN} --output @/new --lr nan", "learning_rate must be > 0, got nan"),
    (f"{TRAIN} --output @/new --lr fast", "Invalid value for '--lr': 'fast'"),
    (f"{TRAIN} --output @/new --epochs 0", "epochs must be >= 1, got 0"),
    (f"{TRAIN} --output @/new --encoder-layers 1,x", "give block numbers such as 1,3,5, or none; got '1,x'"),
    (f"{TRAIN} --output @/new --encoder-layers 2,1", "encoder_layers must be ascending"),
    (f"{TRAIN} --output @/new --encoder-layers 0,9", "encoder_layers must be within 0..2 on this backbone, got [9]"),
    (f"{TRAIN} --output @/new --decoder-layers 2 --head text", "decoder_layers must be within 0..1"),
    (f"{TRAIN} --output @/new --decoder-layers 1", "decoder_layers must be left out for a linear head"),
    (f"{TRAIN} --output @/new --init-samples 9", "init must be fisher where init_samples is 9, got 'random'"),
    (f"{TRAIN} --output @/new --head big", "'big' is not one of 'auto', 'text', 'linear'"),
    (f"{TRAIN} --output @/new --reduction 9", "reduction must be at most d_kv 8, got 9"),
    (f"{TRAIN} --output @/new --device nope", "--device nope cannot be used here"),
    (f"{TRAIN} --output @/new --device meta", "--device meta cannot be used here"),
    (f"{TRAIN} --output @/new --dtype int3", "dtype must be one of auto, float32"),
    (f"{TRAIN} --output @/new --validation-share 0.1", "give either --validation FILE, or --validation-share S"),
    ("train sst2 --backbone @/t5 --train @/train.jsonl --output @/new", "give either --validation FILE, or"),
    (
        "train sst2 --backbone @/t5 --train @/train.jsonl --output @/new --validation-share 20",
        "'20' has no unit: write a percentage with its sign (20%), or a fraction (0.2)",
    ),
    (f"{TRAIN} --output @/new --rename text", "give FIELD=COLUMN, got 'text'"),
    (f"{TRAIN} --output @/new --rename text=a", "letters has no field 'text'; there are sentence, label, id"),
    (f"{TRAIN} --output @/new --rename sentence=a", "no column 'a'; the task needs a, label"),
    (f"{TRAIN} @/letters.toml --output @/new/{{task}}", "task letters is named twice; name it once"),
    (f"{TRAIN} sst2 --output @/new", "2 tasks need {task} in --output, such as runs/{task}: a run each"),
    # servers
    (f"tasks --server {NOBODY}", f"no answer from {NOBODY}"),
    (f"history --server {NOBODY}", f"no answer from {NOBODY}"),
    (f"predict letters a --server {NOBODY}", f"no answer from {NOBODY}"),
    (f"publish @/run-1 --server {NOBODY}", f"no answer from {NOBODY}"),
    (f"rollback letters --server {NOBODY}", f"no answer from {NOBODY}"),
    ("tasks --server here:there", "no answer from here:there"),
    ("predict letters:0 a --server here:there", "'letters:0' is no valid reference"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line(house: House, words: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RETRY_POLICY, "maxAttempts", 2)
    assert message in house.run(words).mistake
    assert not (house / "new").exists()
    assert not (house / "nothing").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("unknown --json", "USAGE"),
        ("tasks --json", "USAGE"),
        ("tasks --registry @/nothing --json", "REGISTRY_NOT_FOUND"),
        ("promote letters 9 --registry @/registry --json", "UNKNOWN_VERSION"),
        (f"{TRAIN} --output @/new --lr 0 --json", "BAD_RECIPE"),
        (f"{EVALUATE} --run @/run-1 --backbone @/nothing --json", "BACKBONE"),
        (f"publish @/run-1 --server {NOBODY} --json", "UNREACHABLE"),
    ],
)
def test_a_mistake_is_json_for_machines(house: House, words: str, reason: str) -> None:
    ran = house.run(words)
    assert (ran.code, ran.out) == (2, "")
    [line] = ran.err.splitlines()
    error = json.loads(line)["error"]
    assert error["reason"] == reason
    assert error["message"]


def test_a_fault_of_ours_is_told_in_full(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Registry, "open", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        house.run("tasks --registry @/registry")


def test_interrupted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.trainer.train", interrupt)
    ran = house.run(f"{TRAIN} --output @/new")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "interrupted")
