"""A Ray cluster for tests. Its ports, files and processes are its own: several may run on one machine."""

import csv
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

LOOPBACK = "127.0.0.1"
MARK = "SIDECAST_TEST_CLUSTER"
"""Variable in the environment of every process of a cluster. It finds those that outlive their parents."""
START_S, STOP_S, DEPLOY_S, ASK_S, PAUSE_S = 150.0, 15.0, 120.0, 10.0, 0.1
RANGE = 200
"""Number of ports for the replicas: half for gRPC, half for HTTP. They lie below those that the system assigns."""


class Cluster:
    """One node with Ray Serve's settings for our application; it runs while its with block does.

    Args:
        cpus: number of CPUs that Ray schedules on; the machine may have fewer.
        environment: further variables for Ray's processes.
    """

    def __init__(self, cpus: int = 4, environment: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sc-", dir="/tmp"))  # a socket's path must be short
        ports, self._guard = take_range(RANGE)
        self.grpc_port, self.http_port, self.metrics_port = ports[:3]
        self._gcs, self._board, self._agent, self._client, *others = free_ports(9)
        self._cpus = cpus
        self._environment = _plain() | _isolated(self.folder, self.grpc_port + 20, *others) | dict(environment or {})
        self._process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """The application's address: HAProxy's gRPC port."""
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def gcs(self) -> str:
        """Ray's address for drivers: `ray.init(address=...)`, RAY_ADDRESS."""
        return f"{LOOPBACK}:{self._gcs}"

    @property
    def dashboard(self) -> str:
        return f"http://{LOOPBACK}:{self._board}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment for a process that uses this cluster: `serve`, `ray`, `sidecast`."""
        board = {"RAY_DASHBOARD_ADDRESS": self.dashboard, "RAY_AGENT_ADDRESS": self.dashboard}
        return self._environment | board | {"RAY_ADDRESS": self.gcs, "RAY_TMPDIR": str(self.folder)}

    def __enter__(self) -> Self:
        with (self.folder / "ray.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._words(), env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_until(self._answers, START_S)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill all of its processes, as a machine that fails would, and remove its files."""
        wait_until(self._killed, STOP_S)
        self._process.wait(STOP_S)
        self._guard.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """All running processes: Ray's, the replicas, HAProxy."""
        mark = f"{MARK}={self.folder}".encode()
        roots = [process for process in psutil.process_iter() if mark in _environ(process)]
        return list({process.pid: process for root in roots for process in (root, *_children(root))}.values())

    def apply(self, settings: Mapping[str, Any], **args: Any) -> None:
        """Deploy the application with these settings of `sidecast serve`, without waiting for it.

        Args:
            args: further fields of `serving.cluster.app.AppArgs`.
        """
        app = {"name": "sidecast", "import_path": "serving.cluster.app:build", "route_prefix": "/"}
        settings = {"metrics_port": self.metrics_port} | dict(settings)
        services = ["serving.cluster.app:add_services"]
        self._put(
            {
                "proxy_location": "HeadOnly",
                "http_options": {"host": LOOPBACK, "port": self.http_port},
                "grpc_options": {
                    "port": self.grpc_port,
                    "grpc_servicer_functions": services,
                    "enable_reflection": True,
                },
                "applications": [app | {"args": {"settings": settings} | args}],
            }
        )

    def deploy(self, settings: Mapping[str, Any], **args: Any) -> None:
        """Deploy the application and wait until it runs."""
        self.apply(settings, **args)
        wait_until(self.running, DEPLOY_S)

    def running(self) -> bool:
        """Whether the application runs as last applied and is reachable.

        Raises:
            AssertionError: its deployment failed.
        """
        app = self.application()
        assert app.get("status") not in ("DEPLOY_FAILED", "UNHEALTHY"), app
        return app.get("status") == "RUNNING" and _listens(self.grpc_port)

    def application(self) -> dict[str, Any]:
        """Ray's description of it: `status`, `message`, `deployments`; empty if there is none."""
        return self.serve_state().get("applications", {}).get("sidecast", {})

    def replicas(self) -> list[dict[str, Any]]:
        """Ray's description of each replica: `pid`, `actor_id`, `replica_id`, `state` and more."""
        servers = self.application().get("deployments", {}).get("Server", {})
        return servers.get("replicas", [])

    def routed(self) -> int:
        """Number of replicas to which HAProxy sends gRPC calls: it hears of a replica a little after it runs."""
        return sum(
            row["# pxname"] == "grpc-sidecast" and row["svname"].startswith("SERVE_REPLICA") and row["status"] == "UP"
            for row in csv.DictReader(self._haproxy("show stat").splitlines())
        )

    def _haproxy(self, command: str) -> str:
        """The answer of HAProxy's admin socket; empty while no HAProxy runs."""
        for path in self.folder.glob("h/*/admin.sock"):
            with socket.socket(socket.AF_UNIX) as admin, suppress(OSError):
                admin.connect(str(path))
                admin.sendall(f"{command}\n".encode())
                with admin.makefile(encoding="utf-8") as answer:
                    return answer.read()
        return ""

    def serve_state(self) -> dict[str, Any]:
        """The dashboard's description of Ray Serve."""
        with urllib.request.urlopen(f"{self.dashboard}/api/serve/applications/", timeout=ASK_S) as response:
            return json.load(response)

    def statuses(self) -> list[dict[str, Any]]:
        """Each replica's `status()`."""
        ran = subprocess.run(
            [sys.executable, "-c", _STATUSES], env=self.environment, capture_output=True, text=True, timeout=DEPLOY_S
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    def _words(self) -> list[str]:
        options = {
            "port": self._gcs,
            "node-ip-address": LOOPBACK,
            "dashboard-host": LOOPBACK,
            "dashboard-port": self._board,
            "dashboard-agent-listen-port": self._agent,
            "ray-client-server-port": self._client,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "temp-dir": self.folder,
            "num-cpus": self._cpus,
            "object-store-memory": 100_000_000,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *words]

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "ray.log").read_text()
        try:
            self.serve_state()
        except OSError:
            return False
        return True

    def _killed(self) -> bool:
        """Kill what runs; True if nothing did. A process that is just being started is found the next time."""
        running = self.processes()
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(running, STOP_S)
        return not running

    def _put(self, config: Mapping[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self.dashboard}/api/serve/applications/",
            data=json.dumps(config).encode(),
            headers={"Content-Type": "application/json"},
            method="PUT",
        )
        urllib.request.urlopen(request, timeout=DEPLOY_S).close()


def wait_until(holds: Callable[[], bool], timeout_s: float) -> float:
    """Wait for a condition; the seconds that it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s:g} s"
        time.sleep(PAUSE_S)
    return time.monotonic() - started


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def take_range(count: int) -> tuple[range, socket.socket]:
    """Reserve `count` ports in a row, below those that the system and Ray's workers take.

    Returns the ports and a socket. While the socket is open, this function gives them to no other caller.
    """
    starts = list(range(20_000, 32_000 - count - 1, count + 1))
    random.shuffle(starts)
    for first in starts:
        with suppress(OSError):
            guard = socket.create_server((LOOPBACK, first))
            if not any(_listens(port) for port in range(first + 1, first + 30)):
                return range(first + 1, first + 1 + count), guard
            guard.close()
    raise AssertionError("no ports are free")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _plain() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SIDECAST_"))}
    return kept | {"OMP_NUM_THREADS": "1"}


def _isolated(
    folder: Path, first_port: int, metrics_port: int, stats_port: int, log_port: int, *fallback: int
) -> dict[str, str]:
    """Ray Serve's settings for our application, and all that clusters of one machine would share otherwise."""
    proxy, half = folder / "h", RANGE // 2 - 10
    values = {
        MARK: folder,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": 0,
        "RAY_SERVE_ENABLE_HA_PROXY": 1,
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": 1,
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": 1,
        "RAY_worker_niceness": 0,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": 2,
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": first_port,
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": first_port + half,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": first_port + half,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": first_port + 2 * half,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": proxy / "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": proxy / "admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": proxy,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": proxy / "server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": proxy / "metrics.sock",
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics_port,
        "RAY_SERVE_HAPROXY_STATS_PORT": stats_port,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": fallback[0],
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": fallback[1],
        "RAY_SERVE_HAPROXY_LOG_TARGET": f"{LOOPBACK}:{log_port}",
    }
    return {name: str(value) for name, value in values.items()}


def _environ(process: psutil.Process) -> bytes:
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return b""


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


_STATUSES = """
import asyncio, json, logging
import ray
from ray import serve

async def ask(handle):
    return await handle.broadcast("status").results_async()

ray.init(namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
print(json.dumps(asyncio.run(ask(serve.get_deployment_handle("Server", "sidecast")))))
"""
