"""The Dockerfile, without building it: what it copies, installs and runs as."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from deploy.healthcheck import has_tls, is_ready, is_serving, port_of
from tests.deploy.kit import DEPLOY, ROOT


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    from dockerfile_parse import DockerfileParser

    parser = DockerfileParser(path=str(DEPLOY / "Dockerfile"))
    return [(step["instruction"], step["value"]) for step in parser.structure]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def values(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in steps if name == instruction]


def copied(steps: list[tuple[str, str]]) -> list[str]:
    """What comes from the repository."""
    return [path for value in values(steps, "COPY") if not value.startswith("--from") for path in value.split()[:-1]]


def test_every_package_is_copied(steps: list[tuple[str, str]], project: dict[str, Any]) -> None:
    packages = {each.rstrip("*") for each in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(copied(steps))
    assert all((ROOT / path).exists() for path in copied(steps))


def test_the_context_holds_what_is_copied(steps: list[tuple[str, str]]) -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied(steps))
    assert "*" in lines


def test_an_image_has_no_extras_but_those_asked_for(steps: list[tuple[str, str]], project: dict[str, Any]) -> None:
    assert values(steps, "ARG")[-1] == 'EXTRAS=""'
    what = [value for value in values(steps, "RUN") if "pip install" in value][-1].split()[-1]
    for extras, package in (
        ("", ".[serve,http]"),
        ("cluster", ".[serve,http,cluster]"),
        ("cluster,quantized", ".[serve,http,cluster,quantized]"),
    ):
        done = subprocess.run(["sh", "-c", f"echo {what}"], env={"EXTRAS": extras}, capture_output=True, text=True)
        assert done.stdout == f"{package}\n"
    known = project["project"]["optional-dependencies"]
    assert not [need for need in project["project"]["dependencies"] if need.startswith("ray")]
    assert [need for need in known["cluster"] if need.startswith("ray[")]
    asked = re.findall(r"--build-arg EXTRAS=([\w,]+)", (ROOT / "docs/operation/deploying.md").read_text())
    assert asked
    assert {extra for extras in asked for extra in extras.split(",")} <= set(known)


def test_installs_are_pinned_and_name_no_host(steps: list[tuple[str, str]]) -> None:
    installs = [value for value in values(steps, "RUN") if "pip install" in value]
    assert installs
    assert all("--constraint constraints.txt" in value for value in installs)
    assert not [value for _, value in steps if "://" in value]
    (python,) = [value.split("=")[1] for value in values(steps, "ARG") if value.startswith("PYTHON=")]
    assert tuple(map(int, python.split("-")[0].split("."))) >= (3, 11)


def test_it_runs_the_command_without_rights(steps: list[tuple[str, str]]) -> None:
    users = values(steps, "USER")
    assert users == ["10001:10001"]
    assert values(steps, "ENTRYPOINT") == ['["sidecast"]']
    assert steps.index(("USER", users[0])) > max(i for i, step in enumerate(steps) if step[0] in ("RUN", "COPY"))


@pytest.fixture
def server() -> Iterator[tuple[str, health.HealthServicer]]:
    servicer, grpc_server = health.HealthServicer(), grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    grpc_server.start()
    yield f"127.0.0.1:{port}", servicer
    grpc_server.stop(None).wait()


def test_the_health_check_tells_serving_from_not(server: tuple[str, health.HealthServicer]) -> None:
    target, servicer = server
    assert is_serving(target)
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not is_serving(target)


def test_the_health_check_fails_where_nobody_listens() -> None:
    assert not is_serving("127.0.0.1:1")


@pytest.mark.parametrize(
    ("words", "environ", "port"),
    [
        ("", {}, 8001),
        ("", {"SIDECAST_PORT": "9001"}, 9001),
        ("--port 9002", {"SIDECAST_PORT": "9001"}, 9002),
        ("--port 9002 --port=9003", {}, 9003),
        ("--port=9003", {}, 9003),
        ("--config FILE", {}, 9004),
        ("--config=FILE", {"SIDECAST_PORT": "9001"}, 9001),
        ("", {"SIDECAST_CONFIG": "FILE"}, 9004),
    ],
)
def test_the_health_check_asks_where_the_server_listens(
    tmp_path: Path, words: str, environ: dict[str, str], port: int
) -> None:
    file = tmp_path / "sidecast.toml"
    file.write_text("port = 9004\n[batch]\nmax_batch_rows = 8\n")
    command = ["python", "sidecast", "serve", *words.replace("FILE", str(file)).split()]
    assert not has_tls(command, {name: value.replace("FILE", str(file)) for name, value in environ.items()})
    assert port_of(command, {name: value.replace("FILE", str(file)) for name, value in environ.items()}) == port


@pytest.mark.parametrize(
    ("words", "environ", "text"),
    [
        ("--tls-cert c", {}, ""),
        ("", {"SIDECAST_TLS_CERT": "c"}, ""),
        ("--config FILE", {}, 'tls_cert = "c"\nmetrics_port = 9005'),
        ("--config FILE", {}, 'metrics_port = 9005\n[access]\ntls_cert = "c"'),
    ],
)
def test_with_tls_the_health_check_asks_the_metrics_port(
    tmp_path: Path, words: str, environ: dict[str, str], text: str
) -> None:
    file = tmp_path / "sidecast.toml"
    file.write_text(text)
    command = ["serve", *words.replace("FILE", str(file)).split()]
    assert has_tls(command, environ)
    assert port_of(command, environ, "metrics_port") == (9005 if text else 8002)
    assert not is_ready(1)
