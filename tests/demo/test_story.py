"""The demo's whole story on a tiny random backbone and a few rows: real commands, a real server, a real swap."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from demo import __main__ as demo_main
from demo.backbone import CHOICE
from demo.commands import CLI, Commands, Server
from demo.dataset import SPLITS, DemoData, TaskData, get_dataset
from demo.downloads import cache_folder
from demo.folders import DemoError
from demo.story import MOVIE, PRODUCT, TWEET, Sizes, first_rows, tell
from demo.zero_shot import majority, zero_shot
from sidecast.cli import app
from tests.paths import demo_packages

SIZES = Sizes(quick_rows=8, epochs={PRODUCT: 1, TWEET: 1, MOVIE: 2}, stay_s=0.2)


class InThisProcess(Commands):
    """Runs each `sidecast` command in this process: a process for each of them would import torch again."""

    def execute(self, module: str, words: list[str], *, capture: bool) -> tuple[int, str]:
        if module != CLI:  # tritonclient's protobuf messages have the names of ours: not in one process
            return super().execute(module, words, capture=capture)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output) if capture else contextlib.nullcontext():
                app.main(words)
        except SystemExit as end:
            return int(end.code or 0), output.getvalue()
        return 0, output.getvalue()


def small_data(folder: Path) -> DemoData:
    """Three tasks with 16 training rows, 8 validation rows and 8 test rows each."""
    tasks = {}
    for task in (MOVIE, PRODUCT, TWEET):
        files = {split: folder / task / f"{split}.jsonl" for split in SPLITS}
        (folder / task).mkdir(parents=True)
        for split, path in files.items():
            rows = [row(task, number, split) for number in range(16 if split == "train" else 8)]
            path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
        tasks[task] = TaskData(task=task, files=files, rows={}, labels={})
    return DemoData(folder=folder, tasks=tasks, sha256="0" * 64)


def row(task: str, number: int, split: str) -> dict[str, object]:
    sentence = f"{'a fine film' if number % 2 else 'a dull one'}, {split} {number}"
    if task == TWEET:
        return {"sentence": sentence, "score": number / 4 - 1}
    return {"sentence": sentence, "label": "positive" if number % 2 else "negative"}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_whole_story_and_again_from_where_it_stopped(tmp_path, tiny_t5, capsys):
    folder = tmp_path / "demo"
    data = small_data(tmp_path / "data")
    commands = InThisProcess()
    tell(folder, tiny_t5, data, SIZES, commands)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["failed", "requests", "0"] in lines
    assert ["versions", "in", "the", "order", "seen", "1,", "2,", "1"] in lines
    for task in (MOVIE, PRODUCT, TWEET):
        [shown] = [line for line in lines if line[:1] == [task] and len(line) == 7]
        least = -1 if task == TWEET else 0  # a correlation, an accuracy
        assert all(least <= float(figure) <= 1 for figure in shown[4:])
    trained = files_under(folder / "runs")
    assert len([path for path in trained if path.suffix == ".safetensors"]) >= 4
    scored = files_under(folder / "zero-shot")
    assert len(scored) == 3
    tell(folder, tiny_t5, data, SIZES, commands)
    assert files_under(folder / "runs") == trained  # nothing was trained again
    assert files_under(folder / "zero-shot") == scored


def files_under(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_command_runs_in_its_own_process_and_its_failure_is_told(capfd):
    commands = Commands()
    with pytest.raises(DemoError, match="sidecast tasks failed; read its message above"):
        commands.run("tasks", "--registry", "/no/registry")
    shown = capfd.readouterr()
    assert shown.out.startswith("$ sidecast tasks --registry /no/registry\n")
    assert "there is no registry at /no/registry" in shown.err
    with pytest.raises(DemoError, match="sidecast evaluate failed"):
        commands.run_json("evaluate", "no-such-command-needs-data")
    assert commands.execute("sidecast.cli", ["--version"], capture=True)[1].startswith("sidecast")


def test_an_interrupted_command_ends_the_story():
    class Interrupted(Commands):
        def execute(self, module: str, words: list[str], *, capture: bool) -> tuple[int, str]:
            return 130, ""

    with pytest.raises(KeyboardInterrupt):
        Interrupted().run("train")


@pytest.mark.slow
def test_a_server_that_does_not_start_is_told(tmp_path, capfd):
    with pytest.raises(DemoError, match="the server did not start"), Server(tmp_path, tmp_path / "registry"):
        pytest.fail("it started")
    assert "has no config.json" in capfd.readouterr().err


def test_make_demo_reports_a_wrong_choice_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv(CHOICE, str(tmp_path / "none"))
    done = CliRunner().invoke(demo_main.main, ["--folder", str(tmp_path / "demo")])
    assert done.exit_code == 2
    assert "has no config.json" in done.stderr


def test_the_demo_without_its_packages_says_so_before_it_begins(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    done = CliRunner().invoke(demo_main.main, ["--folder", str(tmp_path / "demo")])
    assert done.exit_code == 2
    assert (
        done.stderr
        == "Error: the demo needs tritonclient, which is not installed; run make demo, or install '.[demo]'\n"
    )
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("name", ["backbone", "encoder"])
def test_a_model_s_folder_is_all_that_is_printed(name, monkeypatch, tmp_path):
    monkeypatch.setattr(demo_main, "get_backbone", lambda cache, bars: cache / "backbone")
    monkeypatch.setattr(demo_main, "get_lite2", lambda cache, bars: cache / "encoder")
    monkeypatch.setenv("SIDECAST_CACHE", str(tmp_path))
    done = CliRunner().invoke(demo_main.main, [name])
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / name}\n"


def test_only_the_first_rows_of_each_file_are_used(tmp_path):
    data = small_data(tmp_path / "data")
    cut = first_rows(data, tmp_path / "cut", 5)
    for name, task in cut.tasks.items():
        for split in SPLITS:
            whole = data.tasks[name].files[split].read_text(encoding="utf-8")
            assert task.files[split].read_text(encoding="utf-8").splitlines() == whole.splitlines()[:5]


@pytest.mark.slow
@pytest.mark.real_weights
def test_the_real_backbone_answers_real_text_better_than_the_commonest_label(tmp_path, real_backbone):
    with demo_packages():
        data = first_rows(get_dataset(cache_folder()), tmp_path, 64)
    task = data.tasks[MOVIE]
    assert zero_shot(real_backbone, MOVIE, task.test) > majority(MOVIE, task.train, task.test) + 0.1
