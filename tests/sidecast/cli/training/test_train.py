"""`sidecast train`: what it prints, and what it cannot use."""

import re
import shutil
from pathlib import Path

import pytest

from side_registry import read_artifact
from tests.sidecast.cli.house import TASK, TRAIN, House
from tests.sidecast.cli_kit import done, sidecast
from tests.training import toy


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


def test_train_warns_of_labels_that_no_row_has(house: House, tmp_path: Path) -> None:
    rows = [row for row in toy.rows(toy.CLASSES, 64) if row["label"] == "aa"]
    only = toy.write(tmp_path / "only.jsonl", rows)
    files = ["--train", only, "--validation", only, "--epochs", 1, "--reduction", 4, "--json"]
    ran = done("train", house / "letters.toml", "--backbone", house / "t5", *files, "--output", tmp_path / "run")
    first, second = ran.document["warnings"][:2]
    assert first == "letters: no training row has the label bb: it is never learned; check the file"
    assert f"all {len(rows)} validation rows have the label aa" in second


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
        drawn = {"validation_share": 0.25, "validation_drawn": "evenly by target"}
        assert manifest.provenance["reading"] == {"renames": renames, **drawn}
    told = sidecast(*["50%" if word == "25%" else word for word in words]).mistake
    assert "holds a run with another reading (validation_share 0.25, not 0.5)" in told


def test_train_several_rates_and_seeds_at_once(house: House, tmp_path: Path) -> None:
    words = [*house.words(TRAIN), "--epochs", 1, "--lr", "1e-3,1e-30", "--seed", "0,1", "--output", tmp_path / "runs"]
    ran = done(*words)
    heading, first, second, best, ready = ran.out.splitlines()
    assert heading.split() == ["learning", "rate", "runs", "mean", "accuracy", "deviation"]
    assert [line.split()[:2] for line in (first, second)] == [["0.001", "2"], ["1e-30", "2"]]
    document = done(*words, "--json").document
    assert best.startswith(f"letters: best is {document['best']}: accuracy {document['score']:.4f}")
    assert ready == f"{tmp_path / 'runs'}/best is ready: sidecast publish {tmp_path / 'runs'}/best --registry R"
    assert len(document["runs"]) == 4
    assert read_artifact(document["run"]).manifest.metrics["accuracy"] == document["score"]
    assert "name each once" in sidecast(*words, "--lr", "1e-3,0.001").mistake
    assert (
        "not one of 'auto', 'text', 'linear', 'attention', 'mlp'" in sidecast(*words, "--head", "linear,wide").mistake
    )


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
        "--tap-norm": "none",
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
