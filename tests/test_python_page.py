"""docs/python.md: its blocks run, in order, as a reader would paste them.

The page's paths are relative: the test's folder has a tiny random backbone as `google/flan-t5-small` and a few rows as
`train.jsonl` and `dev.jsonl`. One thing is replaced in the page: the server's address.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from serving.components import assemble
from serving.config import ServeConfig
from side_registry import TaskRef
from tests import tiny
from tests.serving.api_kit import serving

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ADDRESS = "127.0.0.1:8001"
BACKBONE = "google/flan-t5-small"


def write_rows(path: Path, count: int) -> None:
    labels = ("negative", "positive")
    rows = [{"sentence": f"film {number}", "label": labels[number % 2]} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(block: str, names: dict[str, Any]) -> None:
    """Execute a block; a failure names the page's line."""
    line = PAGE.read_text(encoding="utf-8").partition(block)[0].count("\n")
    exec(compile("\n" * line + block, str(PAGE), "exec"), names)


def test_every_block_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.make_t5(tmp_path / BACKBONE)
    write_rows(tmp_path / "train.jsonl", 8)
    write_rows(tmp_path / "dev.jsonl", 4)
    *offline, last = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "page"}
    for block in offline:
        assert ADDRESS not in block
        run(block, names)
    assert names["first"].version != names["second"].version
    assert names["registry"].state().resolve(TaskRef("sst2")) == names["first"].version

    assert ADDRESS in last
    config = ServeConfig(backbone=BACKBONE, registry="registry", port=0, metrics_port=0)
    with serving(config, assemble) as (server, _):
        run(last.replace(ADDRESS, f"127.0.0.1:{server.port}"), names)
    [here, _] = names["run"].predict(["a gripping film", "dull"])
    there = names["answers"][0]
    assert (there.label, there.score) == (here.label, pytest.approx(here.score, abs=1e-6))
