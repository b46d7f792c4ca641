"""Starts `sidecast serve` in a process of its own on free ports of this machine, and reads its metrics."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.samples import BenchmarkError

START_S = 1800.0
STOP_S = 60.0
ASK_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running server."""

    address: str
    metrics_url: str
    tasks: int
    start_s: float
    """Seconds from the start of its process until it was ready."""
    pid: int

    @property
    def resident_bytes(self) -> int:
        """Memory of its process now."""
        return psutil.Process(self.pid).memory_info().rss


def counted(metrics_url: str) -> dict[str, float]:
    """Return the value of every metric by name and labels, such as `sidecast_stage_seconds_sum backbone`.

    Raises:
        BenchmarkError: they cannot be read.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(metrics_url, timeout=ASK_S) as response:
            text = response.read().decode()
    except OSError as error:
        raise BenchmarkError(f"the server's metrics cannot be read: {error}") from None
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def serve(**settings: Any) -> Iterator[Served]:
    """Run a server until the block ends, with settings as in a configuration file: `max_batch_rows=64`.

    It does not get SIDECAST_* variables.

    Raises:
        BenchmarkError: it did not start; its error is on standard error.
    """
    with tempfile.TemporaryDirectory(prefix="sidecast-serve-") as folder:
        config = Path(folder) / "serve.toml"
        lines = {"port": 0, "metrics_port": 0, "http_port": 0, "log_level": "WARNING", **settings}.items()
        config.write_text("\n".join(f"{name} = {_toml(value)}" for name, value in lines), encoding="utf-8")
        command = [sys.executable, "-m", "sidecast.cli", "serve", "--config", str(config), "--json"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAST_")}
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            ready = _wait_ready(process)
            yield Served(
                address=ready["address"],
                metrics_url=ready["metrics"],
                tasks=ready["tasks"],
                start_s=time.perf_counter() - started,
                pid=process.pid,
            )
        finally:
            _stop(process)


def _toml(value: object) -> str:
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))


def _wait_ready(process: "subprocess.Popen[str]") -> Mapping[str, Any]:
    assert process.stdout is not None
    stopper = threading.Timer(START_S, process.kill)
    stopper.start()
    try:
        line = process.stdout.readline()
    finally:
        stopper.cancel()
    if not line:
        raise BenchmarkError(f"the server did not start within {START_S:.0f} s; read its error above")
    return json.loads(line)


def _stop(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
