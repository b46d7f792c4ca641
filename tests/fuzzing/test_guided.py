"""Readers of what comes from outside, fed by a fuzzer that follows their code. Without Atheris there is no test."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUNS = 10_000
"""Inputs; the same ones each time, but for what time decides."""
MOST_MB = 1500
"""Memory of the process, which has torch in it."""
LONGEST_S = 5
"""For one input."""
APART = ("sh", "-c", '"$@"; exit $?', "sh")
"""Runs a command as a grandchild: libFuzzer reads a process's peak memory, and Linux hands a child its parent's."""


def test_no_bytes_crash_hang_or_fill_a_reader(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="Atheris has no wheel for this platform")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    options = [f"-runs={RUNS}", "-seed=1", f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MB}", "-max_len=4096"]
    command = [
        *APART,
        sys.executable,
        "-m",
        "tests.fuzzing.guided",
        str(corpus),
        *options,
        f"-artifact_prefix={tmp_path}/",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert int(re.findall(r"Done (\d+) runs", ran.stderr)[-1]) >= RUNS
    assert len(list(corpus.iterdir())) > 80, "it found no way into the readers"
