"""Starts, finds and ends a Ray cluster of this machine alone, for `sidecast deploy` where no cluster runs.

The cluster is a `ray start --head --block` with its child processes. It has separate ports and files, so that other
clusters of the machine are not touched. A file in its folder describes it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from serving.access import Certificates
from serving.client import AFFINITY as HEADER
from serving.cluster import proxy_tls
from serving.cluster.proxy_tls import TlsPorts

ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment with which Ray must be started on every node. Calls go straight to replicas, replicas run at normal
priority (Ray's default is nice 15), and a dead proxy is replaced at once."""
AFFINITY = {
    proxy_tls.BALANCE: f"""hash req.hdr({HEADER})
    hash-type consistent sdbm avalanche
    hash-balance-factor 125"""
}
"""Environment with which equal inputs go to the same replica, unless it has more than 1.25 times the mean number of
calls. Without it a call goes to the replica with the fewest calls. Ray copies the value unchanged into HAProxy's
configuration, after the word `balance`."""
LOOPBACK = "127.0.0.1"
LONGEST_FOLDER = 26
"""Most characters of the folder's path: HAProxy's sockets have 70 more, and the system limits a socket's path."""
START_S = 90.0
"""Longest time for Ray to start."""
STOP_S = 30.0
"""Longest time for its processes to end."""
PAUSE_S = 0.2
RAY = ("-m", "ray.scripts.scripts")
FILE = "cluster.json"
LOG = "ray.log"
TOKEN = "auth_token"
LOCK = "lock"
MARK = "SIDECAST_CLUSTER"
"""Variable in the environment of every process of a cluster: its folder."""
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Ray's settings for sign-in. If the user set one of them, it holds. Else the cluster gets a token of its own: Ray's
ports are open to the network, and anyone who reaches them could run any program."""


class LocalClusterError(RuntimeError):
    """The cluster of this machine could not be started or ended."""

    reason = "LOCAL_CLUSTER"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """A cluster that `start` started."""

    folder: str
    pid: int
    created: float
    """Start of the process in Unix seconds, because its id may be another process's by now."""
    dashboard: str
    gcs: str
    """HOST:PORT of Ray's control store, for drivers."""
    token: str
    """File of the token that Ray asks for; empty if the user's environment says how to sign in."""
    affinity: bool = False
    """Whether calls with equal inputs go to the same replica."""
    tls: dict[str, Any] = field(default_factory=dict)
    """Fields of TlsPorts; empty: calls come without TLS."""

    @property
    def tls_ports(self) -> TlsPorts | None:
        """Where its proxy ends TLS; None where it does not."""
        return TlsPorts(**self.tls) if self.tls else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyTls:
    """How the proxy of a cluster that is to be started ends TLS. Ray's own ports, inside, are chosen at the start."""

    ports: TlsPorts
    certificates: Certificates


def folder_for(dashboard_port: int) -> Path:
    """The default folder of a cluster. In /tmp, because the paths of sockets in it must be short."""
    return Path("/tmp") / f"sidecast-{dashboard_port}"


def find(folder: Path) -> LocalCluster | None:
    """The cluster of a folder, if any process of it runs and it belongs to the current user."""
    try:
        file = folder / FILE
        if file.stat().st_uid != os.getuid():
            return None
        cluster = LocalCluster(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return cluster if _process(cluster) or _members(cluster) else None


def start(
    folder: Path,
    dashboard_port: int,
    ready: Callable[[str], bool],
    *,
    affinity: bool = False,
    tls: ProxyTls | None = None,
) -> LocalCluster:
    """Start a cluster and wait until it answers. Blocks for seconds.

    Args:
        ready: whether the dashboard of an address answers.
        affinity: calls go by their input.
        tls: callers come over TLS; None: without.

    Raises:
        LocalClusterError
    """
    if len(str(folder)) > LONGEST_FOLDER:
        raise LocalClusterError(f"{folder} is too long for sockets in it: {LONGEST_FOLDER} letters at most")
    _make_folder(folder)
    with _locked(folder):
        if find(folder):
            raise LocalClusterError(
                f"the cluster in {folder} runs and does not answer; end it with --down, then try again"
            )
        return _start(folder, dashboard_port, ready, affinity, tls)


def _start(
    folder: Path, dashboard_port: int, ready: Callable[[str], bool], affinity: bool, tls: ProxyTls | None
) -> LocalCluster:
    token = token_of(folder)
    if token:
        _make_token(Path(token))
    gcs_port, inner_port, inner_http_port, *others = _free_ports(9)
    environment = _environment(folder, token, *others[2:]) | (AFFINITY if affinity else {})
    goes_by_input = environment.items() >= AFFINITY.items()  # the user's environment may ask for it too
    ports = None
    if tls is not None:
        ports = replace(tls.ports, inner_port=inner_port, inner_http_port=inner_http_port)
        balance = environment.get(proxy_tls.BALANCE, proxy_tls.DEFAULT_BALANCE)
        environment |= proxy_tls.environment(_make_tls_files(folder, tls.certificates), ports, balance)
    with (folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *RAY, *_arguments(folder, dashboard_port, gcs_port, *others[:2])],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    cluster = LocalCluster(
        folder=str(folder),
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        dashboard=f"http://{LOOPBACK}:{dashboard_port}",
        gcs=f"{LOOPBACK}:{gcs_port}",
        token=token,
        affinity=goes_by_input,
        tls=asdict(ports) if ports else {},
    )
    (folder / FILE).write_text(json.dumps(asdict(cluster)), encoding="utf-8")
    try:
        _wait_for(cluster, process, ready)
    except BaseException:
        _stop(cluster)
        raise
    process.returncode = 0  # it outlives this process: no warning that it was not waited for
    return cluster


def stop(cluster: LocalCluster) -> None:
    """End a cluster and all of its processes. Blocks for seconds.

    Raises:
        LocalClusterError: some processes do not end.
    """
    with _locked(Path(cluster.folder)):
        _stop(cluster)


def _stop(cluster: LocalCluster) -> None:
    process = _process(cluster)
    members = {*_members(cluster), *(_family(process) if process else ())}
    for member in [process] if process else members:  # the first process ends the others
        with contextlib.suppress(psutil.Error):
            member.terminate()
    _, left = psutil.wait_procs(members, timeout=STOP_S)
    for member in left:
        with contextlib.suppress(psutil.Error):
            member.kill()
    if psutil.wait_procs(left, timeout=STOP_S)[1]:
        raise LocalClusterError(f"processes of the cluster in {cluster.folder} do not end; see {LOG} there")
    for name in (FILE, TOKEN):
        (Path(cluster.folder) / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder for one command at a time. Raises LocalClusterError: another command holds it."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LocalClusterError(
                f"another command is starting or ending the cluster in {folder}; try again when it is done"
            ) from None
        yield


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise LocalClusterError(f"cannot use {folder}: {error.strerror}; give another --cluster-folder") from None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise LocalClusterError(
            f"others can write in {folder}; give another --cluster-folder, or one that is not there"
        )


def token_of(folder: Path) -> str:
    """The file of the token of a folder's cluster; empty if the user's environment says how to sign in."""
    file = str(folder / TOKEN)
    is_set_by_user = any(name in os.environ for name in AUTH) and os.environ.get("RAY_AUTH_TOKEN_PATH") != file
    return "" if is_set_by_user else file


def sign_in(token: str) -> None:
    """Set the token for Ray's clients in this process. Call it before Ray is imported, which reads it once."""
    if token:
        os.environ.update(_auth(token))


def _make_token(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32), encoding="utf-8")


def _make_tls_files(folder: Path, certificates: Certificates) -> Path:
    """The folder of the files that the proxy reads, with nothing of a cluster before."""
    files = folder / "tls"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(mode=0o700)
    proxy_tls.write_files(files, certificates.current)
    return files


def _auth(token: str) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}


def _arguments(folder: Path, dashboard_port: int, gcs_port: int, agent_port: int, client_port: int) -> list[str]:
    ports = {
        "port": gcs_port,
        "dashboard-port": dashboard_port,
        "dashboard-agent-listen-port": agent_port,
        "ray-client-server-port": client_port,
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    port_arguments = [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    local = ["--node-ip-address", LOOPBACK, "--dashboard-host", LOOPBACK, "--temp-dir", str(folder / "r")]
    return ["start", "--head", "--block", "--disable-usage-stats", "--log-color", "false", *local, *port_arguments]


def _environment(folder: Path, token: str, metrics_port: int, stats_port: int, *fallback: int) -> dict[str, str]:
    """Ray's environment, with separate files and ports for HAProxy. Variables that the user set have precedence."""
    proxy = folder / "h"
    haproxy = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback[0]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback[1]),
    }
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    return ENVIRONMENT | haproxy | (_auth(token) if token else {}) | kept | {MARK: str(folder)}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def _wait_for(cluster: LocalCluster, process: subprocess.Popen[bytes], ready: Callable[[str], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not ready(cluster.dashboard):
        is_over = process.poll() is not None
        if is_over or time.monotonic() > deadline:
            why = _last_log_line(Path(cluster.folder)) if is_over else f"it did not answer within {START_S:g} s"
            raise LocalClusterError(f"Ray did not start on this machine: {why}")
        time.sleep(PAUSE_S)


def _last_log_line(folder: Path) -> str:
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _process(cluster: LocalCluster) -> psutil.Process | None:
    try:
        process = psutil.Process(cluster.pid)
        alive = process.create_time() == cluster.created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if alive else None


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def _members(cluster: LocalCluster) -> list[psutil.Process]:
    """All processes of the cluster. HAProxy's go on after the one that started them has ended."""
    others = [process for process in psutil.process_iter(["name"]) if process.pid != os.getpid()]
    return [process for process in others if _is_of(process, cluster.folder)]


def _is_of(process: psutil.Process, folder: str) -> bool:
    try:
        if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.environ().get(MARK) == folder:
            return True
        return process.name() == "haproxy" and any(f"{folder}/h/" in word for word in process.cmdline())
    except (psutil.Error, OSError):  # it ended meanwhile, or may not be inspected
        return False
