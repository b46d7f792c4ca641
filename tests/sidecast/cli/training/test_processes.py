"""`sidecast train` on several processes: two of one machine, connected by gloo."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from ladder import load_backbone, load_tokenizer
from tests.sidecast.cli_kit import done
from tests.training import toy
from training.errors import RecipeError
from training.processes import Processes
from training.run_folder import RunFolder
from training.trainer import settings_with, train_shared

TASK = 'name = "letters"\nkind = "classification"\ntemplate = "{sentence}"\nlabels = ["aa", "bb"]\n'


class Two(Processes):
    count = 2


def on_two(*words: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "sidecast", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tiny_t5: Path, tmp_path: Path) -> None:
    """17 rows in steps of 8, so that the last one is a single row: one process has none."""
    (tmp_path / "letters.toml").write_text(TASK, encoding="utf-8")
    data = toy.write(tmp_path / "rows.jsonl", toy.rows(toy.CLASSES, 17))
    settings = ["--batch-rows", 8, "--dropout", 0, "--reduction", 4, "--device", "cpu", "--dtype", "float32", "--json"]
    settings += ["--weight-decay", 0.1, "--schedule", "constant", "--warmup", 0]
    files = ["--backbone", tiny_t5, "--train", data, "--validation", data]
    words = ["train", tmp_path / "letters.toml", *files, *settings]
    alone = done(*words, "--epochs", 2, "--output", tmp_path / "alone").document
    ran = on_two(*words, "--epochs", 2, "--output", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    two = json.loads(ran.stdout)  # one document: the other process says nothing
    assert two["metrics"] == pytest.approx(alone["metrics"], abs=1e-3)
    theirs = load_file(tmp_path / "alone" / "last.safetensors")
    for name, tensor in load_file(tmp_path / "two" / "last.safetensors").items():
        assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=name)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_what_several_processes_cannot_train_is_refused(tiny_t5: Path, tmp_path: Path) -> None:
    backbone, tokenizer = load_backbone(tiny_t5), load_tokenizer(tiny_t5)
    jobs = [
        toy.job(tmp_path, spec, backbone, tokenizer, count=16, head=head)
        for spec, head in ((toy.PAIRS, "linear"), (toy.CLASSES, "text"), (toy.TEXTS, "text"))
    ]
    pairs, *shared = [replace(job, processes=Two()) for job in jobs]
    with pytest.raises(RecipeError, match="processes must be 1 for embedding, which compares all rows of a step"):
        settings_with(None, pairs, RunFolder(tmp_path / "run"))
    with pytest.raises(RecipeError, match="processes must be 1 where several runs or tasks are trained together"):
        train_shared(shared, tmp_path / "shared")
