"""What `train` leaves behind to look at, and `evaluate --plots`."""

import json
import sys
from pathlib import Path

import pytest

from tests.sidecast.cli.house import EVALUATE, TRAIN, House
from tests.sidecast.cli_kit import done, sidecast
from tests.training import toy
from tests.training.trackers.events import scalars

PNG = b"\x89PNG\r\n\x1a\n"


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_that_goes_on_has_a_curve_of_all_its_epochs(house: House, tmp_path: Path) -> None:
    run, picture = tmp_path / "run", tmp_path / "run" / "curves.png"
    words = [*house.words(TRAIN), "--output", run, "--tensorboard", tmp_path / "events", "--json"]
    done(*words, "--epochs", 1)
    assert not picture.exists()  # one epoch is no curve
    done(*words, "--epochs", 2)
    assert picture.read_bytes().startswith(PNG)
    lines = log(run)
    found = scalars(tmp_path / "events" / "letters")
    for name in ("loss", "accuracy", "seconds"):
        assert found[name] == {line["epoch"]: pytest.approx(line[name]) for line in lines}
    other = [*house.words(TRAIN), "--output", tmp_path / "other", "--tensorboard", tmp_path / "events"]
    assert "has the events of another run" in sidecast(*other, "--epochs", 1).mistake


def test_every_run_of_a_sweep_has_events(house: House, tmp_path: Path) -> None:
    words = [*house.words(TRAIN), "--epochs", 1, "--seed", "0,1", "--output", tmp_path / "runs"]
    document = done(*words, "--tensorboard", tmp_path / "events", "--json").document
    for run in document["runs"]:
        [line] = log(tmp_path / "runs" / run["run"])
        assert scalars(tmp_path / "events" / "letters" / run["run"])["loss"] == {1: pytest.approx(line["loss"])}


def test_every_epoch_goes_to_weights_and_biases(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from tests.training.trackers.wandb_files import runs, settings

    words = [*house.words(TRAIN), "--epochs", 1, "--wandb", "letters", "--output", tmp_path / "run"]
    with settings(monkeypatch, tmp_path):
        assert "run is ready" in done(*words).out
    [[begun, epoch]] = runs(tmp_path).values()
    [line] = log(tmp_path / "run")
    assert begun["name"] == "letters run"
    assert json.loads(begun["config"]["recipe"])["epochs"] == 1
    assert (epoch["step"], epoch["loss"]) == (1, pytest.approx(line["loss"]))


def test_without_its_extra_a_picture_is_left_out_and_an_option_says_what_to_install(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    train = [*house.words(TRAIN), "--epochs", 2, "--output", tmp_path / "run"]
    mistake = sidecast(*train, "--tensorboard", tmp_path / "events").mistake
    assert mistake == "tensorboard is not installed; sidecast train needs it here: pip install 'sidecast[tensorboard]'"
    mistake = sidecast(*train, "--wandb", "letters").mistake
    assert mistake == "wandb is not installed; sidecast train needs it here: pip install 'sidecast[wandb]'"
    assert not (tmp_path / "run").exists()
    done(*train)
    assert not (tmp_path / "run" / "curves.png").exists()
    mistake = sidecast(*house.words(EVALUATE), "--run", house / "run-1", "--plots", tmp_path / "plots").mistake
    assert mistake == "matplotlib is not installed; sidecast evaluate needs it here: pip install 'sidecast[plot]'"


def test_plots_of_an_evaluation_are_files_in_a_folder(house: House, tmp_path: Path) -> None:
    words = [*house.words(EVALUATE), "--run", house / "run-1", "--plots", tmp_path / "plots"]
    paths = [str(tmp_path / "plots" / name) for name in ("confusion.png", "calibration.png", "scores.png")]
    assert done(*words).out.splitlines()[-1] == f"pictures: {', '.join(paths)}"
    assert done(*words, "--json").document["plots"] == paths
    assert all(Path(path).read_bytes().startswith(PNG) for path in paths)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in sidecast(*words[:-1], tmp_path / "file").mistake
    unlabelled = toy.write(tmp_path / "rows.jsonl", [{"sentence": "aa"}])
    answers = ["--predictions", tmp_path / "answers.jsonl"]
    assert "have none; leave it out" in sidecast(*words, "--data", unlabelled, *answers).mistake
