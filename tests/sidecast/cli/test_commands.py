"""Every command through its real entry: what it prints for people and for machines, and each mistake in one line."""

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from ladder.decoding.settings import Generation
from serving.client.channel import RETRY_POLICY
from side_registry import Registry, read_artifact
from sidecast.cli.app import COMMANDS, app
from sidecast.cli.output import show_table
from tests import tiny
from tests.serving.api_kit import RTE, SST2, Parlour
from tests.sidecast.cli_kit import Ran, done, python, sidecast, wait_until
from tests.training import toy

NOBODY = "127.0.0.1:1"
"""Where no server is."""

TASK = """
name = "letters"
kind = "classification"
template = "{sentence}"
labels = ["aa", "bb"]
"""


@dataclass(frozen=True)
class House:
    """A backbone, labelled rows, two finished runs, and a registry that has both; version 1 is production."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def words(self, text: str) -> list[str]:
        """A command line in which `@/` stands for this folder."""
        return [word.replace("@/", f"{self.folder}/") for word in text.split()]

    def run(self, text: str) -> Ran:
        return sidecast(*self.words(text))


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("SIDECAST_")]:
        monkeypatch.delenv(name)


TRAIN = "train @/letters.toml --backbone @/t5 --train @/train.jsonl --validation @/validation.jsonl --reduction 4"
EVALUATE = "evaluate letters --data @/validation.jsonl"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> House:
    folder = tmp_path_factory.mktemp("house")
    house = House(folder)
    shutil.copytree(tiny_t5, folder / "t5")
    tiny.make_t5(folder / "other-t5", seed=5)
    (folder / "letters.toml").write_text(TASK, encoding="utf-8")
    toy.write(folder / "train.jsonl", toy.rows(toy.CLASSES, 64))
    toy.write(folder / "validation.jsonl", toy.rows(toy.CLASSES, 30, seed=1))
    for seed in (1, 2):
        assert house.run(f"{TRAIN} --epochs 1 --seed {seed} --output @/run-{seed} --json").code == 0
        assert house.run(f"publish @/run-{seed} --registry @/registry").code == 0
    return house


@pytest.fixture
def registry(house: House, tmp_path: Path) -> Path:
    """A copy of the house's, to change."""
    return Path(shutil.copytree(house / "registry", tmp_path / "registry"))


@pytest.fixture(scope="module")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    """A server that answers by rule, which no test changes."""
    with Parlour(tmp_path_factory.mktemp("parlour")).open() as opened:
        yield opened


# --- the command itself


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


# --- train


def test_train_tells_the_score_and_what_to_do_next(house: House, tmp_path: Path) -> None:
    words = [*house.words(TRAIN), "--epochs", "2", "--output", tmp_path / "run"]
    ran = done(*words)
    first, second = ran.out.splitlines()
    assert first.startswith("letters: ")
    assert "accuracy" in first
    assert re.search(r'on the validation rows \(epoch [12]\); baseline 0\.\d{4} \(always "(aa|bb)"\)$', first)
    assert second == f"{tmp_path / 'run'} is ready: sidecast publish {tmp_path / 'run'} --registry R"
    assert "letters: epoch 2/2" in ran.err
    again = done(*words, "--json")
    assert again.err == ""
    assert again.document["score"] == again.document["metrics"]["accuracy"]
    assert (again.document["task"], again.document["metric"]) == ("letters", "accuracy")
    assert f"(epoch {again.document['epoch']})" in first
    assert read_artifact(again.document["run"]).manifest.metrics == again.document["metrics"]
    assert again.document["beats_baseline"] == (again.document["score"] > again.document["baseline"])
    assert again.document["truncated"] == {"training": 0, "validation": 0}


def test_train_and_evaluate_warn_of_what_makes_a_score_doubtful(house: House, tmp_path: Path) -> None:
    """No learning, one text of five longer than is read, and metrics that hide both."""
    spec = tmp_path / "short.toml"
    spec.write_text(TASK + 'max_source_tokens = 6\nmetric = "matthews"\n', encoding="utf-8")
    rows = [{"sentence": text, "label": "aa"} for text in ("a", "aa", "aaa", "aaaa", "aaaaaaaaaa")]
    data = toy.write(tmp_path / "rows.jsonl", [*rows, *[{"sentence": "b", "label": "bb"}] * 5])
    files = ["--backbone", house / "t5", "--train", data, "--validation", data, "--output", tmp_path / "run"]
    words = ["train", spec, *files, "--reduction", 4, "--epochs", 1, "--lr", "1e-9", "--seed", 1]
    ran = done(*words)
    cut = "letters: 10.0% of the training rows and 10.0% of the validation rows are longer than max_source_tokens = 6"
    assert cut in ran.err
    document = done(*words, "--json").document
    assert document["truncated"] == {"training": 0.1, "validation": 0.1}
    assert (document["score"], document["baseline"], document["beats_baseline"]) == (0.0, 0.0, False)
    assert "matthews 0.0000 does not beat the baseline 0.0000" in ran.err
    assert [warning in ran.err for warning in document["warnings"]] == [True, True]
    scored = done("evaluate", "letters", "--data", data, "--run", tmp_path / "run", "--json")
    assert scored.err == ""
    assert (scored.document["truncated"], scored.document["beats_baseline"]) == (0.1, False)
    assert len(scored.document["warnings"]) == 2
    plain = done("evaluate", "letters", "--data", data, "--run", tmp_path / "run")
    assert plain.out.endswith('on 10 rows; baseline 0.0000 (always "aa")\n')
    assert plain.err.count("Warning: letters: ") == 2


def test_train_several_tasks_from_files_with_other_columns(house: House, tmp_path: Path) -> None:
    """One command: files named by the task, its column by --rename, and a part of the rows that validates."""
    for name in ("letters", "sst2"):
        labels = {"letters": {"aa": "aa", "bb": "bb"}, "sst2": {"aa": "negative", "bb": "positive"}}[name]
        rows = toy.rows(toy.CLASSES, 24)
        toy.write(
            tmp_path / f"{name}.jsonl", [{"text": row["sentence"], "stars": labels[str(row["label"])]} for row in rows]
        )
    words = [
        *("train", house / "letters.toml", "sst2", "--backbone", house / "t5", "--train", tmp_path / "{task}.jsonl"),
        *("--validation-share", "25%", "--rename", "sentence=text", "--rename", "label=stars"),
        *("--output", tmp_path / "runs" / "{task}", "--reduction", 4, "--epochs", 1),
    ]
    ran = done(*words)
    assert [line.split(":")[0] for line in ran.out.splitlines()[::2]] == ["letters", "sst2"]
    document = done(*words, "--json").document
    assert [run["run"] for run in document["runs"]] == [str(tmp_path / "runs" / name) for name in ("letters", "sst2")]
    for name in ("letters", "sst2"):
        manifest = read_artifact(tmp_path / "runs" / name).manifest
        renames = {"sentence": "text", "label": "stars"}
        assert manifest.task == name
        assert manifest.provenance["reading"] == {"renames": renames, "validation_share": 0.25}
    told = sidecast(*["50%" if word == "25%" else word for word in words]).mistake
    assert "holds a run with another reading (validation_share 0.25, not 0.5)" in told


def test_train_goes_on_with_more_epochs(house: House, tmp_path: Path) -> None:
    words = [*house.words(TRAIN), "--output", tmp_path / "run"]
    for epochs in (1, 2):
        done(*words, "--epochs", epochs)
        assert len((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == epochs
    assert "another recipe" in sidecast(*words, "--epochs", 1).mistake


def test_train_a_built_in_task_with_every_setting(house: House, tmp_path: Path) -> None:
    rows = [{"sentence": text, "label": place % 2} for place, text in enumerate(["fine", "dull", "good", "bad"] * 2)]
    data = toy.write(tmp_path / "rows.jsonl", rows)
    files = ["--backbone", house / "t5", "--train", data, "--validation", data, "--output", tmp_path / "run"]
    settings = {
        "--epochs": 1,
        "--lr": 0.002,
        "--seed": 4,
        "--batch-rows": 3,
        "--warmup": 0.2,
        "--weight-decay": 0.1,
        "--dropout": 0.2,
        "--reduction": 2,
        "--encoder-layers": "0,2",
        "--decoder-layers": "none",
        "--head": "text",
        "--start": "pretrained",
        "--distill": 0.25,
        "--distill-temperature": 3.0,
        "--teacher": "backbone",
        "--clip": 0.5,
        "--optimizer": "reference",
        "--gate": "fixed",
        "--gate-form": "channel",
        "--gate-temperature": 0.3,
        "--gate-start": 0.5,
        "--cache-gb": 0,
        "--device": "cpu",
        "--dtype": "float32",
    }
    flags = ["--mix-after", "--merge-last", "--no-bias", "--json"]
    done("train", "sst2", *files, *flags, *[word for pair in settings.items() for word in pair])
    manifest = read_artifact(tmp_path / "run").manifest
    assert (manifest.task, manifest.spec.labels) == ("sst2", ("negative", "positive"))
    assert (manifest.side["encoder_layers"], manifest.side["decoder_layers"]) == ([0, 2], [])
    assert {name: manifest.side[name] for name in ("mix_after", "merge_last", "bias", "gate", "gate_form")} == {
        "mix_after": True,
        "merge_last": True,
        "bias": False,
        "gate": "fixed",
        "gate_form": "channel",
    }
    assert manifest.provenance["teacher"] == "backbone"
    recipe = manifest.provenance["recipe"]
    assert (recipe["optimizer"], recipe["start"]) == ("reference", "pretrained")
    told = {name.removeprefix("--").replace("-", "_"): value for name, value in settings.items()}
    assert recipe["learning_rate"] == told.pop("lr")
    numbers = {name: value for name, value in told.items() if not isinstance(value, str)}
    assert {name: recipe[name] for name in numbers} == numbers


@pytest.mark.parametrize("file", ["train", "validation"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"sentence": "a", "label": "aa"}\n{"sentence": "b",\n', "rows.jsonl, line 2: bad JSON"),
        (
            "rows.jsonl",
            b'{"sentence": "a", "label": "aa"}\n{"sentence": "b", "label": "cc"}\n',
            "rows.jsonl, line 2: target 'label' is 'cc', not one of aa, bb",
        ),
        ("rows.parquet", b"PAR1 and no more", "rows.parquet: bad Parquet"),
        ("rows.xlsx", b"", "rows.xlsx: cannot read .xlsx; use .jsonl, .csv, .tsv or .parquet"),
    ],
)
def test_a_training_file_that_cannot_be_used(
    house: House, tmp_path: Path, file: str, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    ran = sidecast(*house.words(TRAIN), f"--{file}", tmp_path / name, "--output", tmp_path / "run")
    assert message in ran.mistake
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("name = ", "Invalid value"),
        (TASK.replace('"aa", ', ""), "labels must be at least two for classification, got 1"),
        (TASK.replace("labels", "lables"), "unknown field 'lables'; did you mean 'labels'?"),
    ],
)
def test_a_task_file_that_cannot_be_used(house: House, tmp_path: Path, toml: str, message: str) -> None:
    task = tmp_path / "task.toml"
    task.write_text(toml, encoding="utf-8")
    told = sidecast("train", task, *house.words(TRAIN)[2:], "--output", tmp_path / "run").mistake
    assert told.startswith(f"the task spec in {task} cannot be used: ")
    assert message in told


@pytest.mark.parametrize(
    ("task", "message"), [("sst3", "did you mean sst2?"), ("no-such.toml", "No such file or directory")]
)
def test_a_task_that_is_not_there(house: House, tmp_path: Path, task: str, message: str) -> None:
    assert message in sidecast("train", task, *house.words(TRAIN)[2:], "--output", tmp_path / "run").mistake


def break_backbone(folder: Path, how: str) -> None:
    match how:
        case "no config":
            (folder / "config.json").unlink()
        case "config no JSON":
            (folder / "config.json").write_text("{", encoding="utf-8")
        case "no T5":
            (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        case "cut weights":
            weights = folder / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:5000])
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "no pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "has no config.json; give a Hugging Face folder, or a hub id"),
        ("config no JSON", "config.json does not read as JSON"),
        ("no T5", "model_type 'bert'"),
        ("cut weights", "model.safetensors is not a whole safetensors file"),
        ("no weights", "has no model.safetensors"),
        ("no pickle", "pytorch_model.bin does not load"),
        ("no tokenizer", "has no tokenizer.json"),
    ],
)
def test_a_backbone_that_cannot_be_used(house: House, tmp_path: Path, how: str, message: str) -> None:
    backbone = Path(shutil.copytree(house / "t5", tmp_path / "t5"))
    break_backbone(backbone, how)
    told = sidecast(*house.words(TRAIN), "--backbone", backbone, "--output", tmp_path / "run").mistake
    assert message in told
    checks = {each["check"]: each for each in sidecast("doctor", "--backbone", backbone, "--json").document["checks"]}
    assert checks["backbone"]["state"] == "wrong"
    assert message in checks["backbone"]["detail"]


@pytest.mark.parametrize("source", ["some-body/no-such-model", "no-such-folder", "a/b:c"])
def test_a_backbone_that_is_nowhere(house: House, tmp_path: Path, source: str) -> None:
    told = sidecast(*house.words(TRAIN), "--backbone", source, "--output", tmp_path / "run").mistake
    assert source in told


def test_diverged_training_says_what_to_do(house: House, tmp_path: Path) -> None:
    words = [*house.words(TRAIN), "--output", tmp_path / "run", "--lr", "1e30", "--epochs", "1", "--json"]
    ran = sidecast(*words)
    assert ran.code == 2
    assert "try a smaller --lr" in ran.err


# --- publish, promote, rollback, retire, tasks, history


def test_publish_tells_what_callers_get_and_the_next_command(house: House, tmp_path: Path) -> None:
    new = ["--registry", tmp_path / "new"]
    first = done("publish", house / "run-1", *new)
    assert first.out == "published letters version 1; production now points at it (generation 1)\n"
    second = done("publish", house / "run-2", *new, "--message", "better")
    promote = f"sidecast promote letters 2 --registry {tmp_path / 'new'}"
    stays = f"callers still get version 1: {promote} moves them to version 2 (generation 2)\n"
    assert second.out == f"published letters version 2; {stays}"
    again = done("publish", house / "run-2", *new)
    assert again.out == f"letters version 2 was published before from this very run; {stays}"
    canary = done("publish", house / "run-2", *new, "--alias", "canary", "--json").document
    expected = {"task": "letters", "version": 2, "generation": 3, "already": True, "aliases": {"canary": 2}}
    assert canary == expected | {"production": 1}
    rollback = f"sidecast rollback letters --registry {tmp_path / 'new'}"
    assert done("publish", house / "run-2", *new, "--promote").out == (
        "letters version 2 was published before from this very run; production now points at it, was version 1: "
        f"{rollback} undoes it (generation 4)\n"
    )
    assert done("publish", house / "run-2", *new).out == (
        "letters version 2 was published before from this very run; production points at it (generation 4)\n"
    )
    assert done("publish", house / "run-1", *new, "--alias", "canary").out == (
        "letters version 1 was published before from this very run; canary now points at it, was version 2: "
        f"{rollback} --alias canary undoes it; callers still get version 2: "
        f"sidecast promote letters 1 --registry {tmp_path / 'new'} moves them to version 1 (generation 5)\n"
    )


def test_a_task_without_production_is_told_how_to_get_one(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDECAST_REGISTRY", str(tmp_path / "new"))
    assert done("publish", house / "run-1", "--alias", "canary").out == (
        "published letters version 1; canary now points at it; "
        "letters has no production version yet: sidecast promote letters 1 (generation 1)\n"
    )


def test_promote_and_alias_exclude_each_other(house: House, registry: Path) -> None:
    told = sidecast("publish", house / "run-1", "--registry", registry, "--promote", "--alias", "canary").mistake
    assert "--promote is short for --alias production; give one of the two" in told


def test_a_mistaken_publish_leaves_no_registry_behind(house: House, tmp_path: Path) -> None:
    assert sidecast("publish", house / "t5", "--registry", tmp_path / "new").code == 2
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_changed_is_not_published(house: House, registry: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(house / "run-1", tmp_path / "run"))
    data = bytearray((run / "side_network.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "side_network.safetensors").write_bytes(data)
    assert "its sha256 differs" in sidecast("publish", run, "--registry", registry).mistake
    (run / "side_network.safetensors").write_bytes(data[:-1])
    assert "manifest.json says" in sidecast("publish", run, "--registry", registry).mistake


def test_promote_rollback_and_retire(registry: Path) -> None:
    where = ["--registry", registry]
    undo = f"sidecast rollback letters --registry {registry}"
    assert done("promote", "letters", 2, *where).out == (
        f"letters@production is version 2, was version 1: {undo} undoes it (generation 3)\n"
    )
    told = done("promote", "letters", 1, *where, "--alias", "canary", "--json").document
    assert told == {"task": "letters", "alias": "canary", "version": 1, "generation": 4}
    assert done("rollback", "letters", *where).out == "letters@production is version 1 again, was 2 (generation 5)\n"
    assert done("retire", "letters", 2, *where, "-m", "worse").out == "letters version 2 is retired (generation 6)\n"
    assert "version 2 of task 'letters' is retired; use one of 1" in sidecast("promote", "letters", 2, *where).mistake
    shown = done("tasks", *where).out.splitlines()
    assert shown[0].split() == ["task", "kind", "aliases", "versions", "notes"]
    assert shown[1].split() == ["letters", "classification", "production", "1,", "canary", "1", "1"]


def test_rollback_as_json(registry: Path) -> None:
    where = ["--registry", registry]
    for version in (2, 1, 2):
        done("promote", "letters", version, *where)
    told = done("rollback", "letters", "--to", 1, *where, "--json").document
    names = {"task": "letters", "alias": "production", "version_from": 2, "version_to": 1}
    assert told == names | {"generation": 6, "canary_ended": False}
    assert done("retire", "letters", 2, *where, "--json").document == {"task": "letters", "version": 2, "generation": 7}


def test_tasks_of_an_empty_registry(tmp_path: Path) -> None:
    Registry.open(tmp_path, create=True)
    assert done("tasks", "--registry", tmp_path).out == "no tasks yet: sidecast publish RUN adds one\n"
    assert done("tasks", "--registry", tmp_path, "--json").document == {"generation": 0, "tasks": []}
    assert done("history", "--registry", tmp_path, "--json").document == []


def test_tasks_as_json(house: House) -> None:
    document = done("tasks", "--registry", house / "registry", "--json").document
    assert document["generation"] == 2
    [task] = document["tasks"]
    assert (task["task"], task["kind"], task["aliases"]) == ("letters", "classification", {"production": 1})
    assert [(each["version"], each["retired"]) for each in task["versions"]] == [(1, False), (2, False)]


def test_history_tells_who_did_what_and_why(registry: Path) -> None:
    done("promote", "letters", 2, "--registry", registry, "--message", "[red]measured[/red] better")
    ran = done("history", "letters", "--registry", registry)
    lines = ran.out.splitlines()
    assert lines[0].split() == ["generation", "time", "author", "what", "why"]
    assert re.search(r"publish letters 1 \(run [0-9a-f]{16}\), set_alias letters@production 1", lines[1])
    assert lines[3].endswith("[red]measured[/red] better")
    document = done("history", "--registry", registry, "--json").document
    assert [change["generation"] for change in document] == [1, 2, 3]
    action = {
        "verb": "set_alias",
        "task": "letters",
        "version": 2,
        "alias": "production",
        "route": None,
        "run_id": None,
    }
    assert (document[2]["actions"], document[2]["message"]) == ([action], "[red]measured[/red] better")
    newest = done("history", "--registry", registry, "--limit", 1, "--json").document
    assert newest == document[2:]


@pytest.fixture(params=[80, 100])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return request.param


def shown(columns: int, *words: object) -> list[str]:
    """The lines of a terminal, none of which is too long."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in done(*words).out.splitlines()]
    assert max(map(len, lines)) <= columns
    return lines


def test_history_fits_a_terminal(registry: Path, columns: int) -> None:
    why = "better on the held-out rows of the second week, " * 3
    Registry.open(registry).set_alias("letters", "production", 2, author="someone-with-a-name@a-long-host", message=why)
    *_, head, what, why_1, why_2 = lines = shown(columns, "history", "letters", "--registry", registry)
    assert lines[0].split() == ["generation", "time", "author"]
    assert re.fullmatch(r"3 +\S+Z  someone-with-a-name@a-long-host", head)
    assert what == "   what: set_alias letters@production 2"
    assert why_1.startswith("   why: better on the held-out rows")
    assert why_2.startswith("   ")
    assert [line for line in lines if line.endswith(("second", "week,", "rows", "of", "the"))]  # cut between words


def test_tasks_fit_a_terminal(registry: Path, columns: int) -> None:
    where = ["--registry", registry]
    for number in range(5):
        Registry.open(registry).set_alias("letters", f"an-alias-with-a-long-name-{number}", 1)
    heading, row, *below = shown(columns, "tasks", *where)
    assert heading.split()[:2] == ["task", "kind"]
    assert row.split()[:2] == ["letters", "classification"]
    text = " ".join(" ".join(below).split())
    assert text.startswith("aliases: production 1, an-alias-with-a-long-name-0 1, an-alias")
    assert "an-alias-with-a-long-name-4 1" in text


def test_a_wide_terminal_and_a_pipe_have_one_line_for_each_row(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = done("history", "--registry", registry).out
    monkeypatch.setenv("COLUMNS", "80")
    assert done("history", "--registry", registry).out == piped
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert len(shown(300, "history", "--registry", registry)) == len(piped.splitlines())


def test_cells_that_do_not_fit_are_cut_and_say_so(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name", "size", "note"), [("n" * 200, 7, "a note"), ("短" * 60, 8, "")], below=("note",))
    heading, row, note, wide = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert heading.split() == ["name", "size"]
    assert row == "n" * (columns - 7) + "…  7"
    assert note.rstrip() == "   note: a note"
    assert wide.split() == ["短" * ((columns - 7) // 2) + "…", "8"]


def test_a_title_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Even where it is longer than the table is wide; brackets in it are no markup."""
    title = "sst2@production [b]1[/b] " * 10
    show_table(("version", "role"), [(1, "own")], title=title)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        title.split(),
        ["version", "role"],
        ["1", "own"],
    ]


def test_a_strangers_message_does_not_steer_the_terminal(registry: Path) -> None:
    done("promote", "letters", 2, "--registry", registry, "--message", "a :bug: \x1b[31mred\x1b]0;title\x07")
    ran = done("history", "letters", "--registry", registry)
    assert ran.out.splitlines()[3].rstrip().endswith("a :bug:  [31mred ]0;title")
    assert "\x1b" not in ran.out


# --- evaluate


def test_evaluate_a_run_tells_scores_and_writes_every_answer(house: House, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    words = [*house.words(EVALUATE), "--run", house / "run-1", "--predictions", answers]
    ran = done(*words)
    document = done(*words, "--json").document
    assert ran.out.startswith(
        f"letters: accuracy {document['score']:.4f} on 30 rows; baseline {document['baseline']:.4f}"
    )
    metrics = read_artifact(house / "run-1").manifest.metrics
    assert document["score"] == pytest.approx(metrics["accuracy"])
    assert (document["source"], document["version"], document["rows"]) == ("run", None, 30)
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    truth = [row["label"] for row in toy.rows(toy.CLASSES, 30, seed=1)]
    right = sum(row["label"] == label for row, label in zip(rows, truth, strict=True))
    assert right / 30 == pytest.approx(document["score"])
    assert all(row["score"] == max(row["scores"].values()) for row in rows)
    assert [list(row["scores"]) for row in rows] == [["aa", "bb"]] * 30
    assert [row["target"] for row in rows] == truth
    assert [row["id"] for row in rows] == list(range(1, 31))
    assert rows[0]["inputs"] == {"sentence": toy.rows(toy.CLASSES, 1, seed=1)[0]["sentence"]}


def test_evaluate_rows_without_targets_writes_their_answers(house: House, tmp_path: Path) -> None:
    rows = toy.rows(toy.CLASSES, 30, seed=1)
    data = toy.write(tmp_path / "rows.jsonl", [{"text": row["sentence"], "id": f"r{i}"} for i, row in enumerate(rows)])
    words = ["evaluate", "letters", "--run", house / "run-1", "--data", data, "--rename", "sentence=text"]
    told = sidecast(*words).mistake
    assert (
        f"{data} has no column 'label', so there is nothing to score; name the column with --rename label=COLUMN"
        in told
    )
    ran = done(*words, "--predictions", tmp_path / "bare")
    assert ran.out == f"letters: 30 rows without targets, so no score; answers in {tmp_path / 'bare'}\n"
    document = done(*words, "--predictions", tmp_path / "bare", "--json").document
    assert (document["score"], document["metrics"], document["baseline"]) == (None, {}, None)
    done(*house.words(EVALUATE), "--run", house / "run-1", "--predictions", tmp_path / "whole")
    bare, whole = (
        [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        for name in ("bare", "whole")
    )
    assert bare == [row | {"id": f"r{i}", "target": None} for i, row in enumerate(whole)]


def test_evaluate_reads_positions_where_the_given_task_says_so(house: House, tmp_path: Path) -> None:
    """The run's own spec does not: it was trained on texts."""
    rows = [
        {"sentence": row["sentence"], "label": int(row["label"] == "bb")} for row in toy.rows(toy.CLASSES, 30, seed=1)
    ]
    data = toy.write(tmp_path / "rows.jsonl", rows)
    words = ["--data", data, "--run", house / "run-1"]
    assert "only with label_index = true" in sidecast("evaluate", "letters", *words).mistake
    spec = tmp_path / "positions.toml"
    spec.write_text(TASK + "label_index = true\n", encoding="utf-8")
    expected = done(*house.words(EVALUATE), "--run", house / "run-1", "--json").document
    assert done("evaluate", spec, *words, "--json").document == expected


def test_a_run_and_the_version_made_of_it_score_the_same(house: House) -> None:
    for version in (1, 2):
        run = done(*house.words(EVALUATE), "--run", house / f"run-{version}", "--json").document
        words = house.words(f"evaluate letters:{version} --data @/validation.jsonl")
        ran = done(*words, "--registry", house / "registry", "--backbone", house / "t5", "--json").document
        assert ran == run | {"source": "registry", "version": version}


def test_a_task_may_be_named_by_its_toml_file(house: House, tmp_path: Path) -> None:
    spec = tmp_path / "mine.toml"
    spec.write_text('name = "letters"\nkind = "classification"\ntemplate = "{sentence}"\nlabels = ["aa", "bb"]\n')
    words = ["--data", house / "validation.jsonl", "--run", house / "run-1", "--json"]
    assert done("evaluate", spec, *words).document == done("evaluate", "letters", *words).document


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_blob_is_told(house: House, registry: Path, damage: str) -> None:
    digest = read_artifact(house / "run-1").manifest.files["side_network.safetensors"].sha256
    blob = registry / "blobs" / "sha256" / digest
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data if damage == "flipped" else data[:-1])
    told = sidecast(*house.words(EVALUATE), "--registry", registry, "--backbone", house / "t5").mistake
    assert f"blobs/sha256/{digest} is damaged" in told


# --- predict, and the other commands on a server


def ask(parlour: Parlour, *words: str) -> Ran:
    return sidecast("predict", *words, "--server", parlour.address)


def test_predict_prints_texts_as_they_come(parlour: Parlour) -> None:
    ran = ask(parlour, "titles", "one two", "three", "--stream", "--priority", "1")
    assert (ran.code, ran.out) == (0, "TITLE: ONE TWO\nTITLE: THREE\n")
    assert parlour.service.priorities[-2:] == [1, 1]
    *pieces, last = map(json.loads, ask(parlour, "titles", "one two", "--stream", "--json").out.splitlines())
    assert pieces == [{"text": text, "tokens": [n]} for n, text in enumerate(("TITLE:", " ONE", " TWO"))]
    result = last["result"]
    assert (result["text"], result["version"], result["finish_reason"]) == ("TITLE: ONE TWO", 1, "end")
    assert "'sst2' is classification" in ask(parlour, "sst2", "a", "--stream").mistake


def test_predict_answers_each_text(parlour: Parlour) -> None:
    long = "x" * 90
    ran = ask(parlour, "sst2", "dull", long)
    title, heading, *rows = ran.out.splitlines()
    assert (title.strip(), heading.split()) == ("sst2 version 1", ["answer", "score", "input"])
    assert [row.split() for row in rows] == [["negative", "0.9600", "dull"], ["positive", "0.9000", long]]
    document = ask(parlour, "sst2@production", "dull", "--json").document
    [answer] = document["answers"]
    assert (document["task"], document["version"], document["generation"]) == ("sst2", 1, 4)
    scores = {"negative": 0.96, "positive": pytest.approx(0.04)}
    assert answer == {"label": "negative", "score": 0.96, "scores": scores, "truncated": False}
    assert ask(parlour, "sst2:1", "dull", "--json").document == document


def test_predict_other_kinds(parlour: Parlour) -> None:
    assert ask(parlour, "tweets", "x" * 44).out.splitlines()[2].split() == ["0.0000", "x" * 44]
    assert ask(parlour, "tweets", "x" * 44, "--json").document["answers"] == [{"value": 0.0, "truncated": False}]
    assert ask(parlour, "titles", "a [b]bold[/b] one").out.splitlines()[2].startswith("TITLE: A [B]BOLD[/B] ONE ")
    assert ask(parlour, "titles", "a", "--json").document["answers"] == [{"text": "TITLE: A", "truncated": False}]


def test_predict_says_which_texts_were_cut(parlour: Parlour) -> None:
    long = "x" * 200
    ran = ask(parlour, "sst2", "dull", long, long)
    assert ran.err.strip() == "longer than 128 tokens (max_source_tokens), so its end was not read: input 2, 3"
    assert f"{'x' * 99}…" in ran.out
    assert max(map(len, ran.out.splitlines())) < 130  # the table shows an input's beginning
    assert not ask(parlour, "sst2", "dull").err
    answers = ask(parlour, "sst2", "dull", long, "--json").document["answers"]
    assert [answer["truncated"] for answer in answers] == [False, True]
    assert "its end was not read" in ask(parlour, "titles", long, "--stream").err


def test_predict_says_how_texts_are_made(parlour: Parlour) -> None:
    ask(parlour, "titles", "a", "--beams", "3", "--early-stopping", "true", "--max-new-tokens", "5")
    answerer = parlour.service.answerers[-1]
    assert answerer.generation == Generation(num_beams=3, early_stopping=True)
    assert answerer.max_new_tokens == 5
    ask(parlour, "titles", "a", "--temperature", "0.5", "--top-p", "0.9", "--seed", "7")  # which is to sample
    assert parlour.service.answerers[-1].generation == Generation(do_sample=True, temperature=0.5, top_p=0.9, seed=7)
    assert "generation.num_beams: " in ask(parlour, "titles", "a", "--beams", "99").mistake
    assert "is for text; task 'sst2' is classification" in ask(parlour, "sst2", "a", "--seed", "1").mistake


@pytest.mark.parametrize("name", ["sentence=", ""])
def test_predict_keeps_the_order_of_named_and_plain_texts(parlour: Parlour, name: str) -> None:
    ran = ask(parlour, "sst2", f"{name}{'x' * 80}", "a==b", "--json")
    assert [each["label"] for each in ran.document["answers"]] == ["positive", "negative"]


@pytest.mark.parametrize(
    "texts",
    [
        ["a man = a plan", "yes"],
        ["sentence2=yes", "sentence1=a man = a plan"],
        ["sentence2=yes", "a man = a plan"],
        ["a man = a plan", "sentence2=yes"],
    ],
)
def test_predict_takes_fields_in_order_or_by_name(parlour: Parlour, texts: list[str]) -> None:
    document = ask(parlour, "rte", *texts, "--json").document
    [answer] = document["answers"]
    assert answer["scores"]["no"] == pytest.approx(len("a man = a plan / yes") / 100)
    assert ask(parlour, "rte", *texts).out.splitlines()[2].endswith(" | ".join(texts))


def test_predict_takes_a_text_with_an_equals_sign(parlour: Parlour) -> None:
    def titles(*words: str) -> list[str]:
        return [answer["text"] for answer in ask(parlour, "titles", *words, "--json").document["answers"]]

    assert titles("1+1=2", "x = 3", "a == b", "a==b") == [
        "TITLE: 1+1=2",
        "TITLE: X = 3",
        "TITLE: A == B",
        "TITLE: A==B",
    ]
    assert titles("body=y=3", "--text", "z=4", "plain", "--text", "body=5") == [
        "TITLE: Y=3",
        "TITLE: PLAIN",
        "TITLE: Z=4",
        "TITLE: BODY=5",
    ]
    scores = ask(parlour, "rte", "--text", "b=2", "sentence1=a=1", "--json").document["answers"][0]["scores"]
    assert scores["no"] == pytest.approx(len("a=1 / b=2") / 100)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rte", "a"], "takes one row of 2 fields: sentence1=TEXT sentence2=TEXT; got no text for sentence2"),
        (["rte", "sentence2=a"], "; got no text for sentence1"),
        (["rte", "a", "b", "c"], "got 3 texts"),
        (["rte", "sentence1=a", "b", "c"], "got 3 texts"),
        (["rte", "sentence1=a", "sentence1=b"], "a field is given twice; give each of sentence1, sentence2 once"),
        (
            ["rte", "sentence1=a", "c=b"],
            "this task has no field 'c'; its fields: sentence1, sentence2. If 'c=b' is a text",
        ),
        (["rte", "a=x", "c=y"], "this task has no field 'a'; its fields: sentence1, sentence2."),
        (
            ["sst2", "text=a"],
            "this task has no field 'text'; its fields: sentence. If 'text=a' is a text, write --text",
        ),
        (["sst3", "a"], "there is no task 'sst3'; did you mean 'sst2'?"),
        (["sst2@canary", "a"], "has no alias 'canary'; its aliases: production"),
        (["sst2:9", "a"], "has no version 9"),
        (["sst2@", "a"], "'' is no valid alias"),
        (["sst2:one", "a"], "'sst2:one' is no valid reference"),
        (["sst 2", "a"], "'sst 2' is no valid task name"),
        (["sst2", ""], "is empty; give it some text"),
        (["sst2", "fine", " \n "], "rows[1].sentence"),
        (["titles", "x" * 301], "has 301 characters, at most 300 are allowed"),
        (["sst2", "\udcff"], "rows[0]"),
        (["sst2", "a", "--timeout", "soon"], "Invalid value for '--timeout'"),
        (["sst2", "a", "--timeout", "-1"], "Invalid value for '--timeout'"),
    ],
)
def test_a_mistaken_question_is_one_line(parlour: Parlour, words: list[str], message: str) -> None:
    assert message in ask(parlour, *words).mistake


def test_predict_waits_no_longer_than_it_is_told(parlour: Parlour) -> None:
    parlour.service.slow = 30.0
    try:
        assert f"no answer from {parlour.address} within" in ask(parlour, "sst2", "a", "--timeout", "0.2").mistake
    finally:
        parlour.service.slow = 0.0


def test_a_server_and_its_registry_tell_the_same(parlour: Parlour) -> None:
    registry, server = ["--registry", parlour.folder / "registry"], ["--server", parlour.address]
    assert done("history", *server, "--json").document == done("history", *registry, "--json").document
    assert done("history", "rte", *server).out == done("history", "rte", *registry).out
    told, written = (done("tasks", *where, "--json").document for where in (server, registry))
    assert told["generation"] == written["generation"]
    for here, there in zip(told["tasks"], sorted(written["tasks"], key=lambda task: task["task"]), strict=True):
        assert here["serving"] == here["aliases"]
        for version in here["versions"]:
            assert (version.pop("resident"), version.pop("failure")) == (True, None)
        assert {name: value for name, value in here.items() if name != "serving"} == there


def test_changes_through_a_server(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2]).open() as parlour:
        where = ["--server", parlour.address]
        second = done("publish", parlour.run(SST2, 1), *where)
        assert second.out.startswith("published sst2 version 2; callers still get version 1: sidecast promote sst2 2 ")
        undo = f"sidecast rollback sst2 --server {parlour.address} undoes it"
        told = f"sst2@production is version 2, was version 1: {undo} (generation 3)\n"
        assert done("promote", "sst2", 2, *where).out == told
        told = done("rollback", "sst2", *where, "--json").document
        assert (told["version_from"], told["version_to"], told["generation"]) == (2, 1, 4)
        assert "is in use as production" in sidecast("retire", "sst2", 1, *where).mistake
        assert done("retire", "sst2", 2, *where, "-m", "worse").out == "sst2 version 2 is retired (generation 5)\n"
        last = done("history", "sst2", *where, "--limit", 1, "--json").document[0]
        assert (last["message"], last["actions"][0]["verb"]) == ("worse", "retire")
        assert "has no version 7" in sidecast("promote", "sst2", 7, *where).mistake
        assert "there is no task 'sst3'" in sidecast("rollback", "sst3", *where).mistake
        assert "has no alias 'canary'" in sidecast("rollback", "sst2", "--alias", "canary", *where).mistake
        parlour.publish(RTE, backbone="another")
        wait_until(lambda: "does not load" in done("tasks", *where).out)
        [row] = [line for line in done("tasks", *where).out.splitlines() if line.startswith("rte")]
        assert "version 1 does not load: rte: trained on sha256:another" in row
        checks = sidecast("doctor", *where, "--json")
        assert checks.code == 1
        assert "versions of rte do not load" in checks.document["checks"][-1]["detail"]


def test_evaluate_on_a_server_takes_its_spec_and_its_limits(parlour: Parlour, tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b" * 90, "label": "no"}] * 7 + [
        {"sentence1": "a", "sentence2": "b", "label": "maybe"}
    ]
    data = toy.write(tmp_path / "rows.jsonl", rows)
    words = ["evaluate", "rte", "--data", data, "--server", parlour.address, "--predictions", tmp_path / "answers"]
    document = done(*words, "--json").document
    assert document["metrics"] == {"accuracy": 7 / 8}
    assert (document["source"], document["version"], document["rows"]) == ("server", 1, 8)
    assert done(*words).out == 'rte version 1: accuracy 0.8750 on 8 rows; baseline 0.8750 (always "no")\n'
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text(encoding="utf-8").splitlines()]
    assert [each["label"] for each in answers] == ["no"] * 7 + ["yes"]
    asked = done("predict", "rte", "sentence1=a", "sentence2=b", "--server", parlour.address, "--json").document
    assert answers[-1].items() >= asked["answers"][0].items()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("sst3", "there is no task"),
        ("sst2@canary", "has no alias"),
        ("sst2:9", "no version 9"),
        ("a b", "no valid task"),
    ],
)
def test_evaluate_on_a_server_what_it_has_not(parlour: Parlour, house: House, task: str, message: str) -> None:
    rows = toy.write(house / "sst2.jsonl", [{"sentence": "a", "label": "positive"}])
    assert message in sidecast("evaluate", task, "--data", rows, "--server", parlour.address, "--json").err


# --- doctor


def checks_of(ran: Ran) -> dict[str, tuple[str, str]]:
    return {each["check"]: (each["state"], each["detail"]) for each in ran.document["checks"]}


def test_doctor_finds_all_well(house: House, parlour: Parlour) -> None:
    words = ["doctor", "--backbone", house / "t5", "--registry", house / "registry", "--server", parlour.address]
    found = checks_of(done(*words, "--json"))
    assert {state for state, _ in found.values()} == {"ok"}
    assert found["backbone"][1].startswith("t5: 3+2 blocks, width 32")
    assert found["registry"][1] == "generation 2, 1 tasks, 2 versions"
    assert found["server"][1] == "ready, 4 tasks"
    shown = done(*words).out
    assert [line.split()[1] for line in shown.splitlines()] == ["state"] + ["ok"] * 6


def test_doctor_says_what_is_wrong(house: House) -> None:
    words = ["--backbone", house / "other-t5", "--registry", house / "registry", "--server", NOBODY]
    ran = sidecast("doctor", *words, "--device", "cuda:99", "--json")
    assert (ran.code, ran.err, ran.document["healthy"]) == (1, "", False)
    found = checks_of(ran)
    assert [name for name, (state, _) in found.items() if state == "wrong"] == ["device", "fit", "server"]
    assert "--device cuda:99 cannot be used here" in found["device"][1]
    assert found["fit"][1] == "trained on another backbone, or with another --quantize: letters@production"
    assert found["server"][1].startswith(f"no answer from {NOBODY}")


def test_doctor_skips_what_is_not_named(house: House) -> None:
    ran = done("doctor")
    assert [line.split()[1] for line in ran.out.splitlines()[1:]] == ["ok", "ok"] + ["skipped"] * 4
    found = checks_of(sidecast("doctor", "--registry", house / "nothing", "--json"))
    assert found["registry"][0] == "wrong"
    assert "there is no registry at" in found["registry"][1]


# --- serve


SERVE = "serve --backbone @/t5 --registry @/registry --port 0 --metrics-port 0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serve", "backbone and registry must be given"),
        ("serve --backbone @/t5", "registry must be given"),
        ("serve --backbone @/nothing --registry @/registry --port 0 --metrics-port 0", "there is no folder"),
        ("serve --backbone @/registry --registry @/registry --port 0 --metrics-port 0", "has no config.json"),
        ("serve --backbone @/t5 --registry @/t5 --port 0 --metrics-port 0", "is not a registry"),
        (f"{SERVE} --device nope", "--device nope cannot be used here"),
        (f"{SERVE} --device cuda:99", "--device cuda:99 cannot be used here"),
        (f"{SERVE} --dtype int3", "dtype must be one of auto, float32, bfloat16, got 'int3'"),
        (f"{SERVE} --log-level LOUD", "log_level must be one of DEBUG, INFO, WARNING, ERROR, got 'LOUD'"),
        (f"{SERVE} --port 70000", "port must be within 0..65535, got 70000"),
        (f"{SERVE} --port http", "Invalid value for '--port'"),
        (f"{SERVE} --port 9 --metrics-port 9", "port and metrics_port must differ, both are 9"),
        (f"{SERVE} --max-batch-rows 0", "max_batch_rows must be >= 1, got 0"),
        (f"{SERVE} --grace-s -1", "grace_s must be >= 0, got -1.0"),
        (f"{SERVE} --host no.such.host.invalid", "cannot listen on no.such.host.invalid"),
        (f"{SERVE} --config @/nothing", "No such file or directory"),
    ],
)
def test_a_server_that_cannot_start_says_why(house: House, words: str, message: str) -> None:
    assert message in house.run(words).mistake


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use_is_one_line(house: House, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = house.run(f"{SERVE} {option} {port}").mistake
    assert f"port {port} is in use; stop what listens there, or choose another" in told


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("port = ", "is not TOML"),
        ("port = 'eighty'", "port must be of type int, got 'eighty'"),
        ("prot = 1", "unknown settings ['prot']; known are backbone, registry, host, port"),
        ("[batch]\nmax_batch_rows = 0", "max_batch_rows must be >= 1, got 0"),
        ("dtype = 'int3'", "dtype must be one of"),
    ],
)
def test_a_config_file_that_cannot_be_used(house: House, tmp_path: Path, toml: str, message: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(toml, encoding="utf-8")
    words = ["serve", "--backbone", house / "t5", "--registry", house / "registry", "--config", file]
    assert message in sidecast(*words).mistake


class Started:
    """Stands for serving: keeps the settings, says that it is ready, ends with `code`."""

    port, metrics_port, task_count, generation = 8123, 8124, 3, 7

    def __init__(self, code: int = 0) -> None:
        self.config: Any = None
        self.code = code

    def __call__(self, config: Any, on_ready: Any) -> int:
        self.config = config
        on_ready(self)
        return self.code


def test_serve_prints_one_line_when_it_is_ready(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.server.run_server", Started())
    human = house.run(SERVE)
    assert human == Ran(
        0, "ready: gRPC on 127.0.0.1:8123, metrics on http://127.0.0.1:8124/metrics, 3 tasks, generation 7\n", ""
    )
    assert done(*house.words(SERVE), "--json").document == {
        "ready": True,
        "address": "127.0.0.1:8123",
        "metrics": "http://127.0.0.1:8124/metrics",
        "tasks": 3,
        "generation": 7,
    }


def test_serve_ends_with_the_servers_exit_code(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.server.run_server", Started(code=1))
    assert house.run(SERVE).code == 1


# --- the environment


def test_the_command_line_goes_over_the_environment_over_the_file(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started()
    monkeypatch.setattr("serving.server.run_server", started)
    file = tmp_path / "serve.toml"
    file.write_text("port = 1\nmetrics_port = 2\ngrace_s = 3\n[batch]\nmax_batch_rows = 4\n", encoding="utf-8")
    for name, value in {
        "BACKBONE": str(house / "t5"),
        "REGISTRY": str(house / "registry"),
        "CONFIG": str(file),
        "PORT": "11",
        "METRICS_PORT": "12",
        "POLL_S": "0.5",
    }.items():
        monkeypatch.setenv(f"SIDECAST_{name}", value)
    done("serve", "--port", 21)
    config = started.config
    assert (config.backbone, config.registry) == (str(house / "t5"), str(house / "registry"))
    assert (config.port, config.metrics_port, config.grace_s) == (21, 12, 3.0)
    assert (config.batch.max_batch_rows, config.load.poll_s) == (4, 0.5)


def test_a_mistake_in_the_environment_names_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAST_PORT", "http")
    told = sidecast("serve", "--backbone", house / "t5", "--registry", house / "registry").mistake
    assert told == "Invalid value for '--port': 'http' is not a valid integer. (from SIDECAST_PORT)"
    monkeypatch.setenv("SIDECAST_PORT", "")
    monkeypatch.setenv("SIDECAST_DEVICE", "nope")
    assert "--device nope cannot be used here" in house.run(f"{TRAIN} --output @/new").mistake


def test_registry_and_server_come_from_the_environment(
    house: House, parlour: Parlour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDECAST_REGISTRY", str(house / "registry"))
    assert "letters" in done("tasks").out
    assert "sst2" in done("tasks", "--server", parlour.address).out
    monkeypatch.setenv("SIDECAST_SERVER", parlour.address)
    assert "got --registry and --server" in sidecast("tasks").mistake
    assert "letters" in done("tasks", "--registry", house / "registry").out
    assert "positive" in done("predict", "sst2", "x" * 80).out
    assert "no answer from" in sidecast("predict", "sst2", "a", "--server", NOBODY).mistake
    monkeypatch.setenv("SIDECAST_BACKBONE", str(house / "t5"))
    monkeypatch.delenv("SIDECAST_SERVER")
    assert "letters version 1: accuracy" in done(*house.words(EVALUATE)).out
    assert "another backbone" in sidecast(*house.words(EVALUATE), "--backbone", house / "other-t5").mistake
    assert done(*house.words(EVALUATE), "--run", house / "run-2", "--json").document["source"] == "run"
