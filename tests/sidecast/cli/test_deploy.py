"""`sidecast deploy` and `sidecast status` without a cluster: mistakes, the config that would be sent, the tables."""

import json
import re
import socket
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks.harness.authority import Authority
from serving.cluster.deploy import DeployFailed
from serving.cluster.local_cluster import AUTH
from serving.cluster.serve_config import Wanted
from serving.cluster.status import Deployed, Proxy, Replica
from sidecast.cli.app import UserError
from sidecast.cli.serving import deploy as deploy_command
from sidecast.cli.serving import status as status_command
from sidecast.cli.serving.cluster import failures, is_here
from tests.sidecast.cli_kit import done, python, sidecast

SETTINGS = ("--backbone", "google/flan-t5-small", "--registry", "s3://bucket/registry")


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command signs in to Ray by its environment."""
    with monkeypatch.context() as patch:
        for name in AUTH:
            patch.setenv(name, "")
            patch.delenv(name)
        yield


@pytest.fixture
def nowhere(tmp_path: Path) -> tuple[object, ...]:
    """A port that nobody listens on, and a folder where no cluster is."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return ("--dashboard-port", port, "--cluster-folder", tmp_path / "c")


def test_a_dry_run_prints_what_serve_deploy_takes(tmp_path: Path, nowhere: tuple[object, ...]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve.schema import ServeDeploySchema
    file = tmp_path / "serve.toml"
    file.write_text("port = 9000\n[batch]\nmax_batch_rows = 32\n", encoding="utf-8")
    ran = done("deploy", *SETTINGS, "--config", file, "--replicas", 3, "--dry-run", *nowhere)
    sent = ServeDeploySchema.model_validate(yaml.safe_load(ran.out))
    [application] = sent.applications
    assert sent.grpc_options.port == 9000
    assert application.args["settings"] == {
        "backbone": "google/flan-t5-small",
        "registry": "s3://bucket/registry",
        "max_batch_rows": 32,
    }
    assert application.deployments[0].num_replicas == 3
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("address", "host"), [("http://127.0.0.1:1", "127.0.0.1"), ("http://head:8265", "0.0.0.0")])
def test_elsewhere_it_listens_for_all_unless_told_otherwise(address: str, host: str):
    def listens_on(*words: str) -> str:
        ran = done("deploy", *SETTINGS, "--address", address, "--dry-run", "--insecure", *words)
        return yaml.safe_load(ran.out)["http_options"]["host"]

    assert listens_on() == host
    assert listens_on("--host", "10.0.0.7") == "10.0.0.7"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--replicas", 2, "--target-busy", 0.5), "give either --replicas, a fixed number, or --target-busy"),
        (("--min-replicas", 4, "--max-replicas", 2), "min_replicas <= initial_replicas <= max_replicas must hold"),
        (("--device", "cuda"), "give each replica a GPU"),
        (("--max-batch-rows", 0), "max_batch_rows must be >= 1, got 0"),
        (
            ("--host", "10.0.0.7"),
            "other machines reach host 10.0.0.7, and the server has no TLS and no callers' tokens",
        ),
        (("--port", 0), "callers of a cluster must know its port"),
        (("--replicas", 0), "0 is not in the range x>=1"),
    ],
)
def test_a_mistake_is_told_before_anything_is_touched(words: tuple, says: str, tmp_path: Path, nowhere: tuple):
    assert says in sidecast("deploy", *SETTINGS, *words, *nowhere).mistake
    assert not (tmp_path / "c").exists()


def test_without_a_cluster_status_says_what_to_do_and_there_is_nothing_to_take_down(nowhere: tuple[object, ...]):
    ran = sidecast("status", *nowhere)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert "no Ray cluster answers at http://127.0.0.1:" in ran.err
    assert "'sidecast deploy' starts one" in ran.err
    as_json = sidecast("status", "--json", *nowhere)
    assert json.loads(as_json.err)["error"]["reason"] == "NO_CLUSTER"
    assert done("deploy", "--down", "--json", *nowhere).document == {"removed": False, "stopped_cluster": False}


class Fake:
    """A cluster with one application, which serves."""

    address = "http://127.0.0.1:1"

    def __init__(self, address: str) -> None:
        self.name = "sidecast"

    def details(self) -> dict:
        replica = {"replica_id": "abc", "node_ip": "10.0.0.1", "pid": 7, "state": "RUNNING", "start_time_s": 0}
        server = {"target_num_replicas": 2, "replicas": [replica], "message": "A replica starts."}
        app = {"status": "DEPLOYING", "message": "", "deployments": {"Server": server}}
        return {"applications": {self.name: app}, "proxies": {"n": {"node_ip": "10.0.0.1", "status": "HEALTHY"}}}

    def gcs(self) -> None:
        return None


def test_status_shows_what_ray_knows_where_the_replicas_cannot_be_asked(monkeypatch, nowhere: tuple[object, ...]):
    monkeypatch.setattr("serving.cluster.deploy.Cluster", Fake)
    shown = done("status", *nowhere).out.splitlines()
    assert shown[0] == "sidecast: deploying, 1 of 2 replicas run"
    assert shown[1] == "A replica starts."
    assert shown[3].split() == ["abc", "10.0.0.1", "7", "running", "1970-01-01T00:00:00Z"]
    assert shown[4] == "proxies: 10.0.0.1 healthy"
    assert "cannot be asked" in shown[5]
    document = done("status", "--json", *nowhere).document
    assert (document["status"], document["replicas"][0]["id"]) == ("DEPLOYING", "abc")
    other = sidecast("status", "--name", "other", *nowhere)
    assert other.code == 1
    assert "no application 'other'" in other.err


def test_a_replicas_row_tells_how_far_it_is():
    own = {"generation": 11, "wanted": 12, "in_flight": 3, "queued_rows": 4, "busy": 0.5, "load": 0.2}
    replica = Replica(id="abc", node="n", pid=7, state="RUNNING", since="then", own=own)
    row = status_command._row(replica)
    assert row == ("abc", "n", 7, "running", "11 of 12", 3, 4, "50%", "20%", "then")
    assert len(row) == len(status_command.HEADINGS)
    assert status_command._generation(own | {"wanted": 11}) == "11"


@pytest.mark.parametrize("columns", [80, 100])
def test_the_replicas_fit_a_terminal(monkeypatch, capsys, columns: int):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    own = {"generation": 1100, "wanted": 1200, "in_flight": 300, "queued_rows": 4000, "busy": 0.5123, "load": 0.2}
    when = "2026-11-21T18:56:54Z"
    replica = Replica(id="8g3kz1qa", node="10.244.115.201", pid=4194301, state="RUNNING", since=when, own=own)
    proxies = [Proxy(node=f"10.244.115.{number}", status="HEALTHY") for number in range(201, 207)]
    found = Deployed(
        name="sidecast",
        status="RUNNING",
        message="a reason in many words " * 6,
        wanted=1,
        replicas=[replica],
        proxies=proxies,
    )
    status_command._show(found, "", False)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert "replica" in [line.split()[0] for line in lines]
    shown = " ".join(lines)
    assert all(f"{proxy.node} healthy" in shown for proxy in proxies)
    for part in ("8g3kz1qa", "10.244.115.201", "4194301", "1100 of 1200", "300", "4000", "51.23%", "20%", when):
        assert part in shown


def test_where_python_proxies_stand_before_it_a_deployment_says_what_that_costs(capsys):
    class Slow:
        address = "http://127.0.0.1:1"

        def has_fast_proxies(self) -> bool:
            return False

    wanted = wanted_here()
    found = Deployed(
        name="sidecast",
        status="RUNNING",
        message="",
        wanted=1,
        replicas=(),
        proxies=[Proxy(node="n", status="HEALTHY")],
    )
    deploy_command._tell_done(wanted, Slow(), found, False, "Serve keeps its port", False)  # type: ignore[arg-type]
    told = capsys.readouterr()
    assert "Warning: Serve keeps its port; calls go" in told.err
    assert "replicas' own ports are on all addresses of the machine, without TLS, and refuse other" in told.err
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in told.err
    assert told.out == "sidecast runs: 0 replicas, gRPC on 127.0.0.1:8001\n"


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost", True),
        ("http://127.0.0.1:8265/", True),
        ("http://[::1]:8265", True),
        ("http://head", False),
        ("http://[::1", False),
    ],
)
def test_a_dashboard_is_this_machines_by_its_host_alone(url: str, here: bool):
    assert is_here(url) is here


@pytest.mark.parametrize("fault", [DeployFailed("sidecast", "no room"), KeyboardInterrupt()])
def test_a_cluster_that_was_started_for_nothing_is_not_left_without_a_word(fault: BaseException):
    down = deploy_command._down_words("own", {"dashboard_port": 9000, "cluster_folder": None})
    assert down == "sidecast deploy --down --name own --dashboard-port 9000"
    told: list[str] = []
    with pytest.raises(type(fault)) as raised, deploy_command._left_running(down, told.append):
        raise fault
    assert f"goes on; end it with '{down}'" in " ".join([*told, str(raised.value)])
    with pytest.raises(type(fault)) as raised, deploy_command._left_running("", told.append):
        raise fault
    assert raised.value is fault


def test_a_cluster_that_was_started_for_a_config_that_is_refused_is_ended(monkeypatch: pytest.MonkeyPatch):
    class Refuses:
        def __init__(self, address: str) -> None: ...

        def deploy(self, wanted: object, *, check: bool) -> str:
            raise DeployFailed("sidecast", "the cluster refused the config")

    ended: list[object] = []
    monkeypatch.setattr("serving.cluster.deploy.Cluster", Refuses)
    monkeypatch.setattr("serving.cluster.deploy.answers", lambda url: False)
    ours = SimpleNamespace(tls_ports=None)
    monkeypatch.setattr("serving.cluster.deploy.start_here", lambda folder, port, affinity, tls: ours)
    monkeypatch.setattr("serving.cluster.local_cluster.stop", ended.append)
    where = {"address": None, "dashboard_port": 1, "cluster_folder": None}
    with pytest.raises(DeployFailed):
        deploy_command._deploy(wanted_here(), "http://127.0.0.1:1", where, True, False, None, lambda text: None)
    assert ended == [ours]


def test_affinity_is_of_a_cluster_that_is_started_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.cluster.deploy.answers", lambda url: url.endswith(":8265"))
    with pytest.raises(UserError, match=r"did not start the cluster at .* with --affinity"):
        deploy_command._check_started("http://127.0.0.1:8265", "with --affinity")
    deploy_command._check_started("http://127.0.0.1:1", "with --affinity")


def test_tls_is_of_a_cluster_that_is_started_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nowhere: tuple[object, ...]
) -> None:
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.issue("server")
    tls = ("--tls-cert", certificate, "--tls-key", key)
    dry = done("deploy", *SETTINGS, *tls, "--dry-run", *nowhere)
    assert "--tls-cert is no part of the configuration" in dry.err
    [application] = yaml.safe_load(dry.out)["applications"]
    assert application["args"]["settings"]["tls_cert"] == str(certificate)
    monkeypatch.setattr("serving.cluster.deploy.answers", lambda url: True)
    refused = sidecast("deploy", *SETTINGS, *tls, *nowhere)
    assert "did not start the cluster at" in refused.mistake
    assert "cannot be used" in sidecast("deploy", *SETTINGS, "--tls-cert", key, "--tls-key", key, *nowhere).mistake
    here = wanted_here(tls_cert=str(certificate), tls_key=str(key)).tls
    assert here is not None
    assert deploy_command._fits(here, replace(here, inner_port=1))
    assert not deploy_command._fits(here, replace(here, asks_clients=True))
    assert not deploy_command._fits(None, here)


def test_a_removal_that_is_not_waited_for_is_told_as_one(monkeypatch: pytest.MonkeyPatch, nowhere: tuple[object, ...]):
    asked: list[float] = []

    class Removes(Fake):
        def remove(self, name: str, timeout_s: float) -> bool:
            asked.append(timeout_s)
            return True

    monkeypatch.setattr("serving.cluster.deploy.Cluster", Removes)
    ran = done("deploy", "--down", "--wait", 0, "--address", "http://head:8265")
    assert ran.out == "sidecast is being removed\n"
    assert asked == [0]


def wanted_here(**settings: object) -> Wanted:
    asked = given(backbone="b/c", registry="r", cpus=1.0, gpus=0.0, **settings)
    return deploy_command._wanted("sidecast", "http://127.0.0.1:1", None, **asked)


def given(**values: object) -> dict:
    """Every option of the command that makes the config, those that are left out not given."""
    defaults = {"surge": 100, "http_port": 8000, "replicas": None, "max_ongoing_requests": None}
    return dict.fromkeys(deploy_command.SCALING) | defaults | values


def test_commands_without_a_cluster_do_not_wait_for_ray():
    modules = "sidecast.cli.serving.deploy, sidecast.cli.serving.status, serving.cluster.deploy"
    code = f"import sys, {modules}; print('ray' in sys.modules)"
    assert python("-c", code).stdout.strip() == "False"


def test_without_the_extra_it_is_told_in_one_line_what_to_install():
    with pytest.raises(UserError, match=r"ray is not installed.*'sidecast\[cluster\]'"), failures(as_json=False):
        raise ModuleNotFoundError("No module named 'ray'", name="ray")
    with pytest.raises(ModuleNotFoundError), failures(as_json=False):  # our own fault
        raise ModuleNotFoundError("No module named 'serving.nothing'", name="serving.nothing")
