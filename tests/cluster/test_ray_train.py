"""`sidecast train --ray-workers`: Ray Train on a Ray of its own, on this machine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conformance.cluster import wait_until
from tests.sidecast.cli_kit import ROOT, plain_environment
from tests.training import toy

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TASK = 'name = "letters"\nkind = "classification"\ntemplate = "{sentence}"\nlabels = ["aa", "bb"]\n'
SETTINGS = ("--batch-rows", 8, "--dropout", 0, "--reduction", 4, "--device", "cpu", "--dtype", "float32")


def words(tiny_t5: Path, folder: Path, rows: int) -> list[object]:
    (folder / "letters.toml").write_text(TASK, encoding="utf-8")
    data = toy.write(folder / "rows.jsonl", toy.rows(toy.CLASSES, rows))
    return ["train", "letters.toml", "--backbone", tiny_t5, "--train", data.name, "--validation", data.name, *SETTINGS]


def start(folder: Path, *more: object) -> subprocess.Popen[str]:
    """Begin the command, in the folder of its files, whose names are relative."""
    command = [sys.executable, "-m", "sidecast", *map(str, more), "--ray-workers", "2"]
    environment = {**plain_environment(), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_two_workers_train_a_run_which_goes_on_after_one_is_lost(tiny_t5: Path, tmp_path: Path) -> None:
    """What two processes learn is tested without Ray."""
    started = start(tmp_path, *words(tiny_t5, tmp_path, 200), "--epochs", 40, "--output", "run", "--json")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() or started.poll() is not None, 200)
    children = psutil.Process(started.pid).children(recursive=True)
    workers = [process for process in children if "RayTrainWorker" in "".join(process.cmdline())]
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    out, err = started.communicate(timeout=250)
    assert started.returncode == 0, err
    assert "workers were lost, attempt 1 of 3" in err
    document = json.loads(out)
    assert (document["run"], document["metrics"]["accuracy"]) == ("run", pytest.approx(1.0, abs=0.1))
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == [*range(1, 41)]
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["processes"] == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]  # Ray Train's own files are gone


def test_a_mistake_that_workers_find_is_one_line(tiny_t5: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("")
    started = start(tmp_path, *words(tiny_t5, tmp_path, 8), "--epochs", 1, "--output", "run")
    out, err = started.communicate(timeout=250)
    assert (started.returncode, out) == (2, "")
    [line] = err.splitlines()
    assert line == "Error: run: holds no run.json, so it is no run folder; choose an empty one"
