"""A benchmark's script in this process: its server on a thread, its load on this thread's event loop.

Importing torch for each of a script's processes takes longer than its quick run. `test_harness` runs one script with
all of its processes.
"""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.harness import load
from benchmarks.harness.served import serve_here


def put_load(job: load.Job) -> dict[str, Any]:
    """As `benchmarks.harness.load.main` in its process: the job and what was seen go through JSON."""
    job = load.Job(**json.loads(json.dumps(asdict(job))))
    return json.loads(json.dumps(asdict(asyncio.run(load.run_job(job)))))


def run(script: Any, backbone: Path, dtype: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """The quick run of a script's module: the document of its last line."""
    if hasattr(script, "serve"):
        monkeypatch.setattr(script, "serve", serve_here)
        monkeypatch.setattr(load, "_run_process", put_load)
    options = ("--quick", "--json", "--backbone", str(backbone), "--threads", "1", "--dtype", dtype, "--device", "cpu")
    done = CliRunner().invoke(script.main, [*options, *words])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert str(backbone.parent) not in done.stdout
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["machine"]["dtype"] == dtype
    return document
