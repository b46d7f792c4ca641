"""A benchmark's script in this process: its server on a thread, its load on this thread's event loop.

Importing torch for each of a script's processes takes longer than its quick run. `test_harness` runs one script with
all of its processes.
"""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.harness import load
from benchmarks.harness.served import Served
from serving.config import ServeConfig
from serving.server import Server


@contextmanager
def serve(**settings: Any) -> Iterator[Served]:
    """As `benchmarks.harness.served.serve`."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    config = ServeConfig.from_values({"port": 0, "metrics_port": 0, **plain})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        server = Server(config)
        await server.start()
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
        try:
            yield Served(
                address=f"{config.host}:{server.port}",
                metrics_url=f"http://{config.host}:{server.metrics_port}/metrics",
                tasks=server.task_count,
                start_s=0.0,
                pid=os.getpid(),
            )
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(5.0), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def put_load(job: load.Job) -> dict[str, Any]:
    """As `benchmarks.harness.load.main` in its process: the job and what was seen go through JSON."""
    job = load.Job(**json.loads(json.dumps(asdict(job))))
    return json.loads(json.dumps(asdict(asyncio.run(load.run_job(job)))))


def run(script: Any, backbone: Path, dtype: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """The quick run of a script's module: the document of its last line."""
    if hasattr(script, "serve"):
        monkeypatch.setattr(script, "serve", serve)
        monkeypatch.setattr(load, "_run_process", put_load)
    options = ("--quick", "--json", "--backbone", str(backbone), "--threads", "1", "--dtype", dtype, "--device", "cpu")
    done = CliRunner().invoke(script.main, [*options, *words])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert str(backbone.parent) not in done.stdout
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["machine"]["dtype"] == dtype
    return document
