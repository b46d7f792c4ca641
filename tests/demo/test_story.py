"""The demo's whole story, on fewer rows: real backbone, real text, real server, real swap."""

import subprocess
import sys

import pytest

from demo.dataset import get_dataset
from demo.downloads import cache_folder
from tests.paths import demo_packages


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("real_backbone")
def test_the_whole_story_and_again_from_where_it_stopped(tmp_path):
    with demo_packages():
        get_dataset(cache_folder())
    command = [sys.executable, "-m", "demo", "--folder", str(tmp_path / "demo"), "--rows", "96"]
    told = subprocess.run(command, check=False, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]
    lines = [line.split() for line in told.stdout.splitlines()]
    assert ["failed", "requests", "0"] in lines
    assert ["versions", "in", "the", "order", "seen", "1,", "2,", "1"] in lines
    for task in ("movie-sentiment", "product-sentiment", "tweet-sentiment"):
        [row] = [line for line in lines if line[:1] == [task] and len(line) == 7]
        assert all(0 <= float(figure) <= 1 for figure in row[4:])
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")}
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in runs} == runs  # trained once
