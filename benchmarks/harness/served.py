"""Starts `sidecast serve` in a process of its own on free ports of this machine, and reads its metrics."""

import asyncio
import json
import os
import signal
import socket
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
from typing import TYPE_CHECKING, Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.samples import BenchmarkError
from serving.config import ServeConfig

if TYPE_CHECKING:  # it needs the extra `signing`
    from benchmarks.harness.secured import Credentials

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
    http_url: str = ""
    """Empty: it has no HTTP API."""
    credentials: "Credentials | None" = None
    """Of callers, where it has TLS and tokens."""

    def client(self) -> dict[str, Any]:
        """Arguments of `Client` besides the address."""
        return self.credentials.client() if self.credentials else {}

    @property
    def resident_bytes(self) -> int:
        """Memory of its process now."""
        return psutil.Process(self.pid).memory_info().rss


def counted(metrics_url: str, credentials: "Credentials | None" = None) -> dict[str, float]:
    """Return the value of every metric by name and labels, such as `sidecast_stage_seconds_sum backbone`.

    Raises:
        BenchmarkError: they cannot be read.
    """
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    request = urllib.request.Request(metrics_url)
    if credentials:
        handlers.append(urllib.request.HTTPSHandler(context=credentials.context()))
        request.add_header("Authorization", f"Bearer {credentials.token()}")
    direct = urllib.request.build_opener(*handlers)
    try:
        with direct.open(request, timeout=ASK_S) as response:
            text = response.read().decode()
    except OSError as error:
        raise BenchmarkError(f"the server's metrics cannot be read: {error}") from None
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def serve(credentials: "Credentials | None" = None, **settings: Any) -> Iterator[Served]:
    """Run a server until the block ends, with settings as in a configuration file: `max_batch_rows=64`.

    It does not get SIDECAST_* variables. `credentials` are those of its callers, if its settings ask for some.

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
                http_url=ready["http"] or "",
                credentials=credentials,
            )
        finally:
            _stop(process)


@contextmanager
def serve_here(**settings: Any) -> Iterator[Served]:
    """As `serve`, in this process: it starts in no time, but shares the interpreter with what calls it."""
    from serving.server import Server

    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    config = ServeConfig.from_values({"port": 0, "metrics_port": 0, "log_level": "WARNING", **plain})
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


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


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
