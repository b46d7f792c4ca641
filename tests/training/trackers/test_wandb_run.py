"""Runs of Weights & Biases, read back from what the wandb package writes while it is offline."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("wandb", reason="the extra wandb is not installed")

from tests.training.trackers.lines import LINES
from tests.training.trackers.wandb_files import runs, settings
from training.errors import RunError
from training.run_folder import RunFolder
from training.trackers import WandbRun


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with settings(monkeypatch, tmp_path):
        yield


def begin(folder: Path, project: str = "tasks") -> WandbRun:
    folder.mkdir(exist_ok=True)
    return WandbRun(project, "letters run", RunFolder(folder), "letters", {"recipe": {"lr": 0.001}})


def test_a_run_that_goes_on_has_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(tmp_path / "run")
    assert first.url is None
    first.add(LINES[:1])
    first.add(LINES[:1])
    first.close()
    with settings(monkeypatch, tmp_path / "later"):  # wandb names folders by the second
        second = begin(tmp_path / "run")
        second.add(LINES)
        second.close()
    [parts] = runs(tmp_path).values()  # both files are of one run
    begun = [part for part in parts if "project" in part]
    assert {(part["project"], part["name"]) for part in begun} == {("tasks", "letters run")}
    assert json.loads(begun[0]["config"]["recipe"]) == {"lr": 0.001}
    steps = [part for part in parts if "step" in part]
    assert steps == [
        {"step": 1, "loss": 0.7, "accuracy": 0.5, "baseline": 0.6, "calibration/temperature": 1.5, "seconds": 2},
        {"step": 2, "loss": 0.4, "accuracy": 0.8, "baseline": 0.6, "seconds": 1},
    ]


def test_two_runs_at_a_time_stay_apart(tmp_path: Path) -> None:
    both = [begin(tmp_path / name) for name in ("one", "two")]
    for tracked, lines in zip(both, (LINES[:1], LINES[1:]), strict=True):
        tracked.add(lines)
    for tracked in both:
        tracked.close()
    found = [[part["step"] for part in parts if "step" in part] for parts in runs(tmp_path).values()]
    assert sorted(found) == [[1], [2]]


def test_another_project_and_a_damaged_note_are_refused(tmp_path: Path) -> None:
    tracked = begin(tmp_path / "run")
    tracked.add(LINES)
    tracked.close()
    with pytest.raises(
        RunError, match="is in the Weights & Biases project 'tasks'; give it again, or delete wandb-lett"
    ):
        begin(tmp_path / "run", "others")
    for text, message in (("{", "does not read"), ("[]", "was not written by this program")):
        (tmp_path / "run" / "wandb-letters.json").write_text(text, encoding="utf-8")
        with pytest.raises(RunError, match=message):
            begin(tmp_path / "run")


def test_without_a_login_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    begins = r"does not begin its run: .*log in \(wandb login\), or set WANDB_MODE=offline"
    with settings(monkeypatch, tmp_path, "online"), pytest.raises(RunError, match=begins):
        begin(tmp_path / "run")
