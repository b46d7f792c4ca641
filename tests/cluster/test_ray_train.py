"""`sidecast train --ray-workers`: Ray Train on a Ray of its own, on this machine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.conformance.cluster import wait_until
from tests.sidecast.cli_kit import ROOT, done, plain_environment
from tests.training import toy

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TASK = 'name = "letters"\nkind = "classification"\ntemplate = "{sentence}"\nlabels = ["aa", "bb"]\n'
SETTINGS = ("--batch-rows", 8, "--dropout", 0, "--reduction", 4, "--device", "cpu", "--dtype", "float32")


def words(tiny_t5: Path, folder: Path, rows: int = 17) -> list[object]:
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


def test_two_workers_learn_what_one_process_learns(tiny_t5: Path, tmp_path: Path) -> None:
    train = words(tiny_t5, tmp_path)
    started = start(tmp_path, *train, "--epochs", 2, "--output", "two", "--json")
    out, err = started.communicate(timeout=250)
    assert started.returncode == 0, err
    paths = [tmp_path / word if word in ("letters.toml", "rows.jsonl") else word for word in train]
    alone = done(*paths, "--epochs", 2, "--output", tmp_path / "alone", "--json").document
    assert json.loads(out)["metrics"] == pytest.approx(alone["metrics"], abs=1e-3)
    theirs = load_file(tmp_path / "alone" / "last.safetensors")
    for name, tensor in load_file(tmp_path / "two" / "last.safetensors").items():
        assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_run_goes_on_after_a_worker_is_lost(tiny_t5: Path, tmp_path: Path) -> None:
    train = words(tiny_t5, tmp_path, 400)
    started = start(tmp_path, *train, "--epochs", 60, "--output", "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() or started.poll() is not None, 200)
    [*_, worker] = [
        process
        for process in psutil.Process(started.pid).children(recursive=True)
        if "RayTrainWorker" in "".join(process.cmdline())
    ]
    os.kill(worker.pid, signal.SIGKILL)
    out, err = started.communicate(timeout=250)
    assert started.returncode == 0, err
    assert "workers were lost, attempt 1 of 3" in err
    assert "run is ready" in out
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == [*range(1, 61)]


def test_mistakes_are_one_line(tiny_t5: Path, tmp_path: Path) -> None:
    train = words(tiny_t5, tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("")
    started = start(tmp_path, *train, "--epochs", 1, "--output", "run")
    out, err = started.communicate(timeout=250)
    assert (started.returncode, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: run ")
    assert "Traceback" not in err
