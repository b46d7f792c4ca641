"""`sidecast deploy` on a cluster that it starts on this machine: deployed, asked, updated badly, taken down."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
import requests

from benchmarks.harness.authority import Authority
from ladder import load_backbone, load_tokenizer
from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.access.tokens import create_token
from serving.client.client import Client
from side_registry import Registry
from tests.conformance.cluster import wait_until
from tests.serving.kit import make_run, make_spec
from tests.serving.otlp_kit import collector
from tests.serving.test_tracing import CALLER, SPAN, TRACE
from tests.sidecast.cli_kit import ROOT, Ran, plain_environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
COMMAND_S = 180.0
RENEWED_S = 30.0
"""Longest that a renewed certificate may take to be shown."""


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
            env=kept | {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1", "OTEL_BSP_SCHEDULE_DELAY": "200"},
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


def test_with_tls_and_tokens_it_is_as_safe_as_one_process_and_its_replicas_are_traced(house: House, tmp_path: Path):
    authority = Authority(tmp_path / "tls")
    (chain, key), caller = authority.issue("server"), authority.issue("caller")
    token = create_token(tmp_path / "tokens.toml", name="ci", scopes=["predict:sst2", "read"], tenant="a")
    tls = ("--tls-cert", chain, "--tls-key", key, "--tls-client-ca", authority.ca)
    with collector() as collected:
        access = (*tls, "--tokens", tmp_path / "tokens.toml", "--otlp-endpoint", collected.endpoint)
        deployed = house.deploy(house.backbone, *access)
        assert deployed.code == 0, deployed
        assert deployed.document["addresses"] == [f"127.0.0.1:{house.port}"]
        headers = {"Authorization": f"Bearer {token}", "traceparent": CALLER}
        with open_channel(house.port, authority.ca, caller) as channel:
            metadata = [(name.lower(), value) for name, value in headers.items()]
            rows = [pb.Row(text="good")]
            stub = sidecast_pb2_grpc.SidecastStub(channel)
            answer = stub.Predict(pb.PredictRequest(task="sst2", rows=rows), metadata=metadata, timeout=30)
            assert answer.task == "sst2"
            with pytest.raises(grpc.RpcError) as refused:
                stub.Predict(pb.PredictRequest(task="sst2", rows=rows), timeout=30)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

        def ask(url: str, **how: object) -> requests.Response:
            given = {"cert": caller, "verify": authority.ca, "headers": headers, "timeout": 30} | how
            return requests.request("POST" if url.endswith("predict") else "GET", url, **given)  # type: ignore[arg-type]

        http = f"https://127.0.0.1:{house.http_port}"
        row = {"inputs": ["good"]}
        assert ask(f"{http}/v1/tasks/sst2:predict", json=row).status_code == 200
        assert ask(f"{http}/v1/tasks/sst2:predict", json=row, headers={}).status_code == 401
        serving = replica(house)
        metrics_port = serving["own"]["metrics"].rpartition(":")[2]
        assert "sidecast_rows_total" in ask(f"https://127.0.0.1:{metrics_port}/metrics").text
        for port in (house.port, house.http_port):
            with pytest.raises(ssl.SSLError), open_tls(port, authority.ca, None) as plain:
                plain.recv(1)  # TLS 1.3 tells a refusal of the client's certificate only here
        before = serial(house.http_port, authority.ca, caller)
        authority.issue("server")
        wait_until(lambda: serial(house.http_port, authority.ca, caller) != before, RENEWED_S)
        assert ask(f"{http}/v1/tasks/sst2:predict", json=row).status_code == 200
        [own_port] = own_grpc_ports(serving["pid"])
        for elsewhere in other_addresses():
            with grpc.insecure_channel(f"{elsewhere}:{own_port}") as channel, pytest.raises(grpc.RpcError) as refused:
                sidecast_pb2_grpc.SidecastStub(channel).Predict(pb.PredictRequest(), metadata=metadata, timeout=30)
            assert "its own machine alone" in refused.value.details()
        again = house.deploy(house.backbone)
        assert "without --tls-cert: end it" in again.err
        assert house.run("deploy", "--down").code == 0
    called = collected.one("sidecast.v1.Sidecast/Predict", TRACE)
    posted = collected.named("POST /v1/tasks/{task}:predict", TRACE)
    assert {span.parent_span_id for span in (called, *posted)} == {SPAN}
    assert {span.parent_span_id for span in collected.named("backbone", TRACE)} >= {called.span_id}
    assert collected.one("load").parent_span_id == collected.one("swap").span_id


def open_channel(port: int, ca: Path, caller: tuple[Path, Path]) -> grpc.Channel:
    chain, key = (file.read_bytes() for file in caller)
    return grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(ca.read_bytes(), key, chain))


@contextmanager
def open_tls(port: int, ca: Path, caller: tuple[Path, Path] | None) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2", "http/1.1"])
    if caller:
        context.load_cert_chain(*caller)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        yield tls


def serial(port: int, ca: Path, caller: tuple[Path, Path]) -> str:
    """Of the certificate that is shown."""
    with open_tls(port, ca, caller) as tls:
        return str((tls.getpeercert() or {})["serialNumber"])


def own_grpc_ports(pid: int) -> set[int]:
    """Of a replica, past the proxy. Ray gives them out from 40000 on."""
    sockets = psutil.Process(pid).net_connections("tcp")
    return {each.laddr.port for each in sockets if each.status == psutil.CONN_LISTEN} & {*range(40000, 41000)}


def other_addresses() -> list[str]:
    """This machine's, but loopback's; none where it has no network."""
    found = [each.address for card in psutil.net_if_addrs().values() for each in card if each.family == socket.AF_INET]
    return [address for address in found if not address.startswith("127.")]


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
