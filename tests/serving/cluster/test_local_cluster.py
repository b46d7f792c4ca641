"""A Ray cluster of this machine: what it is started with, how it is found again and ended. Ray itself is replaced."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.harness.authority import Authority
from serving.access import Certificates
from serving.cluster import local_cluster
from serving.cluster.local_cluster import LocalCluster, LocalClusterError, ProxyTls, find, start, stop, token_of
from serving.cluster.proxy_tls import TlsPorts
from serving.cluster.serve_config import serve_config
from tests.serving.cluster.test_deploy import wanted


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Sockets have short names: pytest's own folders are too deep for them."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="sdeploy-"))
    yield folder
    shutil.rmtree(folder)


def test_a_cluster_of_before_is_not_found(tmp_path: Path):
    assert find(tmp_path) is None
    (tmp_path / "cluster.json").write_text("{")
    assert find(tmp_path) is None
    ended = {"folder": str(tmp_path), "pid": os.getpid(), "created": 1.0, "dashboard": "d", "gcs": "g", "token": ""}
    (tmp_path / "cluster.json").write_text(json.dumps(ended))
    assert find(tmp_path) is None  # the process has this one's id, and is younger


def test_the_users_own_way_to_sign_in_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in local_cluster.AUTH:
        monkeypatch.delenv(name, raising=False)
    own = token_of(tmp_path)
    assert Path(own).parent == tmp_path
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", own)
    assert token_of(tmp_path) == own
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/the/users")
    assert token_of(tmp_path) == ""


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, short_folder: Path):
    open_to_all = short_folder / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(LocalClusterError, match="others can write in"):
        start(open_to_all, 1, lambda address: False)
    with pytest.raises(LocalClusterError, match="too long for sockets"):
        start(short_folder / ("x" * 40), 1, lambda address: False)
    monkeypatch.setattr(local_cluster, "_arguments", lambda *_: ["no such command"])
    monkeypatch.setattr(local_cluster, "RAY", ("-c", "import sys; sys.exit('port 1 is taken')"))
    with pytest.raises(LocalClusterError, match="did not start on this machine: port 1 is taken"):
        start(short_folder, 1, lambda address: False)
    assert find(short_folder) is None
    assert not list(short_folder.glob("*token*"))


def test_a_cluster_has_a_token_that_only_its_user_reads(monkeypatch: pytest.MonkeyPatch, short_folder: Path):
    for name in local_cluster.AUTH:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(local_cluster, "RAY", ("-c", "import time; time.sleep(60)"))
    cluster = start(short_folder, 1, lambda address: True)
    try:
        assert find(short_folder) == cluster
        file = Path(cluster.token)
        assert (file.stat().st_mode & 0o777, short_folder.stat().st_mode & 0o777) == (0o600, 0o700)
        assert len(file.read_text()) == 64
        with pytest.raises(LocalClusterError, match="end it with --down"):
            start(short_folder, 1, lambda address: True)
    finally:
        stop(cluster)
    assert find(short_folder) is None


def members(folder: Path) -> list[psutil.Process]:
    """The processes of a folder's cluster, by their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(local_cluster.MARK) == str(folder):
                found.append(process)
    return found


SLEEP = "import time; time.sleep(60)"


def test_two_commands_do_not_start_or_end_a_cluster_at_once(short_folder: Path):
    cluster = LocalCluster(folder=str(short_folder), pid=1, created=0.0, dashboard="d", gcs="g", token="")
    with (short_folder / local_cluster.LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LocalClusterError, match="another command is starting or ending the cluster"):
            start(short_folder, 1, lambda address: True)
        with pytest.raises(LocalClusterError, match="another command is starting or ending the cluster"):
            stop(cluster)


def test_what_a_dead_head_left_is_found_and_ended_and_nobody_elses(monkeypatch: pytest.MonkeyPatch, short_folder: Path):
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"
    monkeypatch.setattr(local_cluster, "RAY", ("-c", program))
    editor = subprocess.Popen([sys.executable, "-c", SLEEP, f"{short_folder}/h/haproxy.cfg"])
    try:
        cluster = start(short_folder, 1, lambda address: len(members(short_folder)) == 2)
        os.kill(cluster.pid, signal.SIGKILL)
        os.waitpid(cluster.pid, 0)
        [left] = members(short_folder)
        assert find(short_folder) == cluster
        stop(cluster)
        assert not left.is_running()
        assert find(short_folder) is None
        assert editor.poll() is None
    finally:
        for process in (editor, *members(short_folder)):
            process.kill()
        editor.wait()


LEAST = "leastconn"
[(BALANCE, BY_INPUT)] = local_cluster.AFFINITY.items()


@pytest.mark.parametrize(
    ("asked", "variable", "has_it"),
    [(True, LEAST, True), (False, LEAST, False), (False, None, False), (True, None, True), (False, BY_INPUT, True)],
)
def test_a_cluster_has_the_affinity_that_is_asked_for_and_remembers_it(
    monkeypatch: pytest.MonkeyPatch, short_folder: Path, asked: bool, variable: str | None, has_it: bool
):
    monkeypatch.delenv(BALANCE, raising=False)
    if variable:
        monkeypatch.setenv(BALANCE, variable)
    monkeypatch.setattr(local_cluster, "RAY", ("-c", SLEEP))
    cluster = start(short_folder, 1, lambda address: bool(members(short_folder)), affinity=asked)
    try:
        assert (psutil.Process(cluster.pid).environ().get(BALANCE) == BY_INPUT) == has_it
        assert (find(short_folder) or cluster).affinity == cluster.affinity == has_it
    finally:
        stop(cluster)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(cluster.pid, 0)


def test_a_cluster_with_tls_is_started_with_it_and_remembers_rays_ports_behind_it(
    monkeypatch: pytest.MonkeyPatch, short_folder: Path, tmp_path: Path
):
    certificate, key = Authority(tmp_path).issue("server")
    ports = TlsPorts(host="127.0.0.1", port=8001, http_port=8000, asks_clients=False)
    tls = ProxyTls(ports=ports, certificates=Certificates(certificate, key))
    monkeypatch.delenv(BALANCE, raising=False)
    monkeypatch.setattr(local_cluster, "RAY", ("-c", SLEEP))
    cluster = start(short_folder, 1, lambda address: bool(members(short_folder)), affinity=True, tls=tls)
    try:
        given = psutil.Process(cluster.pid).environ()
        assert given[BALANCE].startswith(f"{BY_INPUT}\nlisten sidecast_grpc\n")
        assert (Path(given["SIDECAST_TLS"]) / "tls.pem").read_bytes().startswith(certificate.read_bytes())
        found = find(short_folder) or cluster
        assert found.affinity
        inner = found.tls_ports
        assert inner is not None
        assert ports.fits(inner)
        assert 0 < inner.inner_port != inner.inner_http_port > 0
        assert f"server ray 127.0.0.1:{inner.inner_port}" in given[BALANCE]
        document = serve_config(wanted().behind(inner))
        assert document["http_options"] == {"host": "127.0.0.1", "port": inner.inner_http_port}
        assert document["grpc_options"]["port"] == inner.inner_port
    finally:
        stop(cluster)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(cluster.pid, 0)
