"""`sidecast evaluate` of runs, published versions and servers."""

import json
from pathlib import Path

import pytest

from serving.components import assemble
from serving.config import ServeConfig
from side_registry import read_artifact
from tests.serving.api_kit import serving
from tests.sidecast.cli.house import EVALUATE, TASK, House
from tests.sidecast.cli_kit import done, sidecast
from tests.training import toy


def test_evaluate_a_run_tells_scores_and_writes_every_answer(house: House, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    words = [*house.words(EVALUATE), "--run", house / "run-1", "--predictions", answers]
    ran = done(*words)
    document = done(*words, "--json").document
    shown = {
        name: f"{name} {document['metrics'][name]:.4f} [{low:.4f}, {high:.4f}]"
        for name, (low, high) in document["intervals"].items()
    }
    assert list(shown) == ["accuracy", "ece"]
    assert ran.out.startswith(
        f"letters: {shown['accuracy']}, {shown['ece']} on 30 rows; baseline {document['baseline']:.4f}"
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


def test_a_task_with_several_labels_is_trained_scored_and_published(house: House, tmp_path: Path) -> None:
    spec = tmp_path / "has.toml"
    spec.write_text('name = "has"\nkind = "multilabel"\ntemplate = "{sentence}"\nlabels = ["aa", "bb", "many"]\n')
    data = toy.write(tmp_path / "rows.jsonl", toy.rows(toy.MANY, 40))
    train = ["train", spec, "--backbone", house / "t5", "--train", data, "--validation", data, "--reduction", "4"]
    done(*train, "--epochs", "1", "--output", tmp_path / "run")
    words = ["evaluate", spec, "--data", data, "--predictions", tmp_path / "answers.jsonl"]
    document = done(*words, "--run", tmp_path / "run", "--json").document
    manifest = read_artifact(tmp_path / "run").manifest
    assert document["metrics"] == pytest.approx({name: manifest.metrics[name] for name in toy.MANY_METRICS})
    assert document["baseline_answer"].split(", ")[0] in toy.MANY.labels
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [set(row["target"]) for row in rows] == [set(row["labels"]) for row in toy.rows(toy.MANY, 40)]  # type: ignore[arg-type]
    for row in rows:
        reached = {label for label, score in row["scores"].items() if score >= manifest.thresholds[label]}
        assert set(row["labels"]) == reached
    told = "--plots is for tasks of the kinds classification and regression, and has is a multilabel task; leave it out"
    assert sidecast(*words, "--run", tmp_path / "run", "--plots", tmp_path / "plots").mistake == told
    done("publish", tmp_path / "run", "--registry", tmp_path / "registry")
    published = done(*words, "--registry", tmp_path / "registry", "--backbone", house / "t5", "--json").document
    assert published == document | {"source": "registry", "version": 1}


def test_a_run_and_the_version_made_of_it_score_the_same(house: House) -> None:
    for version in (1, 2):
        run = done(*house.words(EVALUATE), "--run", house / f"run-{version}", "--json").document
        words = house.words(f"evaluate letters:{version} --data @/validation.jsonl")
        ran = done(*words, "--registry", house / "registry", "--backbone", house / "t5", "--json").document
        assert ran == run | {"source": "registry", "version": version}


def test_a_server_a_registry_and_a_run_tell_the_same_numbers(house: House) -> None:
    words = [*house.words(EVALUATE), "--report", "--json"]
    calibrated = [read_artifact(house / f"run-{version}").manifest.calibration for version in (1, 2)]
    assert any(calibrated), "one of the two has a temperature, or this test says little"
    config = ServeConfig(backbone=str(house / "t5"), registry=str(house / "registry"), port=0, metrics_port=0)
    with serving(config, assemble) as (server, _):
        for version in (1, 2):
            words[1] = f"letters:{version}"
            served = done(*words, "--server", f"127.0.0.1:{server.port}").document
            stored = done(*words, "--registry", house / "registry", "--backbone", house / "t5").document
            words[1] = "letters"
            run = done(*words, "--run", house / f"run-{version}").document
            assert stored == run | {"source": "registry", "version": version}
            assert served["metrics"] == pytest.approx(run["metrics"], abs=1e-5)
            assert served["classes"] == run["classes"]
            for name, interval in run["intervals"].items():
                assert served["intervals"][name] == pytest.approx(interval, abs=1e-5)


def test_the_report_has_a_line_for_each_class(house: House) -> None:
    ran = done(*house.words(EVALUATE), "--run", house / "run-1", "--report")
    _, heading, *lines = ran.out.splitlines()
    assert heading.split() == ["class", "rows", "answered", "precision", "recall", "f1"]
    assert [line.split()[0] for line in lines] == ["aa", "bb"]
    assert sum(int(line.split()[1]) for line in lines) == 30


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
