"""`sidecast deploy` on a cluster that it starts on this machine: deployed, asked, updated badly, taken down."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ladder import load_backbone, load_tokenizer
from serving.client.client import Client
from side_registry import Registry
from tests.serving.kit import make_run, make_spec
from tests.sidecast.cli_kit import ROOT, Ran, plain_environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
COMMAND_S = 180.0


@dataclass(frozen=True)
class House:
    folder: Path
    backbone: Path
    registry: Path
    port: int
    http_port: int
    dashboard_port: int

    def run(self, *words: object) -> Ran:
        """`sidecast WORDS...` about this house's cluster, in a process of its own."""
        kept = {name: value for name, value in plain_environment().items() if not name.startswith("RAY_")}
        here = ("--dashboard-port", self.dashboard_port, "--cluster-folder", self.folder)
        ended = subprocess.run(
            [sys.executable, "-m", "sidecast.cli", *map(str, (*words, *here))],
            check=False,
            cwd=ROOT,
            env=kept | {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        return Ran(ended.returncode, ended.stdout, ended.stderr)

    def deploy(self, backbone: Path, *words: object) -> Ran:
        ports = ("--port", self.port, "--http-port", self.http_port, "--metrics-port", 0)
        which = ("--backbone", backbone, "--registry", self.registry)
        return self.run("deploy", *which, *ports, "--cpus", 0.5, "--wait", 150, "--json", *words)

    def processes(self) -> list[psutil.Process]:
        every = psutil.process_iter(["cmdline"])
        mine = [each for each in every if any(f"{self.folder}/" in word for word in each.info["cmdline"] or ())]
        return [each for each in mine if each.pid != os.getpid()]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def house(tiny_t5: Path, tmp_path: Path) -> Iterator[House]:
    registry = Registry.open(tmp_path / "registry", create=True)
    run = make_run(tmp_path / "run", load_backbone(tiny_t5, dtype="float32"), load_tokenizer(tiny_t5), make_spec())
    registry.publish(run)
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="sdeploy-"))
    house = House(folder, tiny_t5, tmp_path / "registry", *free_ports(3))
    yield house
    if house.processes():  # a test that failed half way
        house.run("deploy", "--down")
    for each in house.processes():
        each.kill()
    shutil.rmtree(folder)


def test_deployed_asked_updated_badly_and_taken_down(house: House):
    deployed = house.deploy(house.backbone)
    assert deployed.code == 0, deployed
    assert deployed.document["started_cluster"]
    assert deployed.document["addresses"] == [f"127.0.0.1:{house.port}"]
    assert "warning" not in deployed.document
    assert deployed.err == ""
    first = replica(house)
    with Client(f"127.0.0.1:{house.port}") as client:
        assert [each.task for each in client.tasks()] == ["sst2"]

    failed = house.deploy(house.folder / "gone")
    assert (failed.code, failed.out) == (1, "")
    error = json.loads(failed.err)["error"]
    assert error["reason"] == "DEPLOY_FAILED"
    assert f"BackboneError: there is no folder {house.folder / 'gone'}" in error["message"]
    assert "Traceback" not in error["message"]
    assert replica(house, "DEPLOY_FAILED", "BackboneError: there is no folder")["pid"] == first["pid"]
    with Client(f"127.0.0.1:{house.port}") as client:
        assert [each.task for each in client.tasks()] == ["sst2"]

    down = house.run("deploy", "--down", "--json")
    assert down.document == {"removed": True, "stopped_cluster": True}, down
    assert house.processes() == []


def replica(house: House, status: str = "RUNNING", why: str = "") -> dict:
    """The one that runs, which serves what was published."""
    asked = house.run("status", "--json")
    assert (asked.code, asked.err) == (0, ""), asked
    found = asked.document
    assert found["status"] == status
    assert found["message"].startswith(why)
    [running] = [each for each in found["replicas"] if each["state"] == "RUNNING"]
    assert running["own"]["generation"] == running["own"]["wanted"] == 1
    assert running["own"]["pid"] == running["pid"]
    return running
