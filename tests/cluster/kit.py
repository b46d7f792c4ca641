"""An application with a tiny model on its own cluster, ways to disturb it, and callers that record results."""

import json
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil

from ladder import load_backbone, load_tokenizer
from serving.client.client import Client
from serving.client.errors import SidecastError, UnavailableError
from side_registry import Registry
from tests.conformance.cluster import LOOPBACK, Cluster, wait_until
from tests.serving.kit import make_run, make_spec

SOON_S = 100.0
"""Longest that a test waits for Ray to do something."""
PAUSE_S = 0.02
"""Pause of a caller after each call."""
HAPROXY = "haproxy"
PROXY = "ray::HAProxyManager"
CONTROLLER = "ray::ServeController"


@dataclass(frozen=True)
class Call:
    """One call; times are time.monotonic() seconds."""

    began: float
    ended: float
    version: int | None
    error: Exception | None


@dataclass
class Seen:
    """All calls of the callers."""

    calls: list[Call] = field(default_factory=list)

    @property
    def answered(self) -> list[Call]:
        return [call for call in self.calls if call.error is None]

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if call.error is not None]

    def answered_since(self, moment: float, count: int = 20) -> bool:
        """Whether `count` calls that began after `moment` were answered."""
        return sum(call.began > moment for call in self.answered) >= count


class Fleet:
    """The application on its cluster.

    Args:
        folder: for the registry and the runs.
    """

    def __init__(self, cluster: Cluster, backbone: Path, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.backbone, self.tokenizer = load_backbone(backbone), load_tokenizer(backbone)
        self.registry = Registry.open(folder / "registry", create=True)
        self.settings: dict[str, Any] = {"backbone": str(backbone), "registry": str(folder / "registry")}
        self._app: dict[str, Any] = {}
        self._sent: dict[str, Any] = {}
        self._runs = 0

    def run(self, **how: Any) -> Path:
        """Write a new run folder of the task `sst2`."""
        self._runs += 1
        return make_run(
            self.folder / f"run-{self._runs}", self.backbone, self.tokenizer, make_spec(), self._runs, **how
        )

    def publish(self, **how: Any) -> int:
        """Publish a new run as production; return its version."""
        return self.registry.publish(self.run(**how), alias="production").version

    def client(self, **how: Any) -> Client:
        return Client(self.cluster.address, timeout=30, **how)

    def apply(self, replicas: int, settings: Mapping[str, Any] | None = None, **app: Any) -> None:
        """Send the application's config, changed by these settings. Does not wait.

        Args:
            app: other keys of an application in Ray's config, as `runtime_env`.
        """
        settings = {"metrics_port": self.cluster.metrics_port, **self.settings, **(settings or {})}
        application = {
            "name": "sidecast",
            "import_path": "serving.cluster.app:build",
            "route_prefix": "/",
            "args": {"settings": settings, "cpus": 0.5},
        }
        self._send(application | app, replicas)

    def deploy(self, replicas: int) -> None:
        """Wait until so many replicas run and are routed to, with the settings that ran last, or else the first."""
        if self._app:
            self._send(self._app, replicas)
        else:
            self.apply(replicas)
        self.wait(replicas)

    def wait(self, replicas: int) -> None:
        """Wait until the application runs as applied."""
        wait_until(lambda: self.runs(replicas), SOON_S)
        self._app = self._sent

    def _send(self, application: dict[str, Any], replicas: int) -> None:
        self._sent = application
        services = ["serving.cluster.app:add_services"]
        grpc = {"port": self.cluster.grpc_port, "grpc_servicer_functions": services, "enable_reflection": True}
        http = {"host": LOOPBACK, "port": self.cluster.http_port}
        application = application | {"deployments": [{"name": "Server", "num_replicas": replicas}]}
        config = {"http_options": http, "grpc_options": grpc, "applications": [application]}
        self._ask("PUT", {"proxy_location": "HeadOnly"} | config)

    def remove(self) -> None:
        """Remove the application; Serve and its proxy stay."""
        self._ask("PUT", {"applications": []})

    def shut_down(self) -> None:
        """End Serve, as `serve shutdown` does."""
        self._ask("DELETE")

    def _ask(self, method: str, document: object = None) -> None:
        request = Request(
            f"{self.cluster.dashboard}/api/serve/applications/",
            data=json.dumps(document).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        wait_until(lambda: _taken(request), SOON_S)

    def runs(self, replicas: int = 2) -> bool:
        """Whether the application runs as applied, and HAProxy knows it. False also if Ray does not answer in time."""
        with suppress(TimeoutError):
            running = self.cluster.application().get("status") == "RUNNING"
            return running and self.whole(replicas) and self.cluster.routed() == replicas and self.reachable()
        return False

    def reachable(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, self.cluster.grpc_port)) == 0

    def serving(self) -> list[int]:
        """Process ids of the replicas that serve."""
        return [replica["pid"] for replica in self.cluster.replicas() if replica["state"] == "RUNNING"]

    def whole(self, replicas: int = 2) -> bool:
        """Whether this many replicas serve, and none is in another state."""
        states = [replica["state"] for replica in self.cluster.replicas()]
        return states == ["RUNNING"] * replicas

    def processes(self, name: str) -> list[psutil.Process]:
        """The cluster's processes of that name."""
        processes = []
        for process in self.cluster.processes():
            try:
                words = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if words and (words[0].startswith(name) or Path(words[0]).name == name):
                processes.append(process)
        return processes

    def kill(self, name: str) -> None:
        """Kill all processes of that name."""
        for process in self.processes(name):
            process.send_signal(signal.SIGKILL)

    def metric(self, status: Mapping[str, Any], name: str) -> float:
        """A metric of the replica that has this status."""
        with urlopen(f"http://{status['metrics']}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def _taken(request: Request) -> bool:
    """Whether Ray accepted the request; while Serve starts, the dashboard answers 500."""
    try:
        urlopen(request, timeout=SOON_S).close()
    except HTTPError as error:
        if error.code == 500:
            return False
        raise
    return True


@contextmanager
def traffic(fleet: Fleet, callers: int = 4, *, retry: bool = True, pause_s: float = PAUSE_S) -> Iterator[Seen]:
    """Call until the block ends, each caller over its own connection. The block begins after the first answers.

    Args:
        pause_s: after each call. Without one the callers take the cores that a new replica needs to start.
    """
    seen, stop = Seen(), Event()
    threads = [Thread(target=_call, args=(fleet, seen, stop, retry, pause_s), daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(seen.answered) >= callers, SOON_S)
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _call(fleet: Fleet, seen: Seen, stop: Event, retry: bool, pause_s: float) -> None:
    with fleet.client(retry=retry) as client:
        number = 0
        while not stop.is_set():
            number += 1
            began, version, error = time.monotonic(), None, None
            try:
                version = client.predict("sst2", [f"text {id(client)} {number}"]).version
            except Exception as raised:
                error = raised
            seen.calls.append(Call(began, time.monotonic(), version, error))
            stop.wait(pause_s)


def assert_unavailable(seen: Seen, *also: type[SidecastError]) -> None:
    """Assert that all failed calls failed with UNAVAILABLE, which a caller may retry, or as in `also`."""
    others = {repr(call.error) for call in seen.failed if not isinstance(call.error, (UnavailableError, *also))}
    assert not others, others
