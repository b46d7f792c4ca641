"""`sidecast serve`: its one line, its exit code, why it cannot start, and settings from the environment."""

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.serving.api_kit import Parlour
from tests.sidecast.cli.house import EVALUATE, NOBODY, TRAIN, House
from tests.sidecast.cli_kit import Ran, done, sidecast

SERVE = "serve --backbone @/t5 --registry @/registry --port 0 --metrics-port 0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serve", "backbone and registry must be given"),
        ("serve --backbone @/t5", "registry must be given"),
        ("serve --backbone @/nothing --registry @/registry --port 0 --metrics-port 0", "there is no folder"),
        ("serve --backbone @/registry --registry @/registry --port 0 --metrics-port 0", "has no config.json"),
        ("serve --backbone @/t5 --registry @/t5 --port 0 --metrics-port 0", "is not a registry"),
        (f"{SERVE} --device nope", "--device nope cannot be used here"),
        (f"{SERVE} --device cuda:99", "--device cuda:99 cannot be used here"),
        (f"{SERVE} --dtype int3", "dtype must be one of auto, float32, bfloat16, got 'int3'"),
        (f"{SERVE} --log-level LOUD", "log_level must be one of DEBUG, INFO, WARNING, ERROR, got 'LOUD'"),
        (f"{SERVE} --port 70000", "port must be within 0..65535, got 70000"),
        (f"{SERVE} --port http", "Invalid value for '--port'"),
        (f"{SERVE} --port 9 --metrics-port 9", "port and metrics_port must differ, both are 9"),
        (f"{SERVE} --max-batch-rows 0", "max_batch_rows must be >= 1, got 0"),
        (f"{SERVE} --grace-s -1", "grace_s must be >= 0, got -1.0"),
        (f"{SERVE} --host no.such.host.invalid --insecure", "cannot listen on no.such.host.invalid"),
        (
            f"{SERVE} --host 0.0.0.0",
            "other machines reach host 0.0.0.0, and the server has no TLS and no callers' tokens",
        ),
        (f"{SERVE} --host 0.0.0.0 --tokens @/none.toml", "and the server has no TLS; give --tls-cert"),
        (f"{SERVE} --tls-cert @/none", "tls_cert and tls_key belong together; give both"),
        (f"{SERVE} --tls-cert @/none --tls-key @/none", "the TLS certificate"),
        (f"{SERVE} --tokens @/none.toml", "the tokens file"),
        (f"{SERVE} --config @/nothing", "No such file or directory"),
    ],
)
def test_a_server_that_cannot_start_says_why(house: House, words: str, message: str) -> None:
    assert message in house.run(words).mistake


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use_is_one_line(house: House, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = house.run(f"{SERVE} {option} {port}").mistake
    assert f"port {port} is in use; stop what listens there, or choose another" in told


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("port = ", "is not TOML"),
        ("port = 'eighty'", "port must be of type int, got 'eighty'"),
        ("prot = 1", "unknown settings ['prot']; known are backbone, registry, host, port"),
        ("[batch]\nmax_batch_rows = 0", "max_batch_rows must be >= 1, got 0"),
        ("dtype = 'int3'", "dtype must be one of"),
    ],
)
def test_a_config_file_that_cannot_be_used(house: House, tmp_path: Path, toml: str, message: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(toml, encoding="utf-8")
    words = ["serve", "--backbone", house / "t5", "--registry", house / "registry", "--config", file]
    assert message in sidecast(*words).mistake


class Started:
    """Stands for serving: keeps the settings, says that it is ready, ends with `code`."""

    port, metrics_port, task_count, generation = 8123, 8124, 3, 7

    def __init__(self, code: int = 0, http_port: int | None = None) -> None:
        self.config: Any = None
        self.code = code
        self.http_port = http_port

    def __call__(self, config: Any, on_ready: Any) -> int:
        self.config = config
        on_ready(self)
        return self.code


def test_serve_prints_one_line_when_it_is_ready(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.server.run_server", Started())
    human = house.run(SERVE)
    assert human == Ran(
        0, "ready: gRPC on 127.0.0.1:8123, metrics on http://127.0.0.1:8124/metrics, 3 tasks, generation 7\n", ""
    )
    assert done(*house.words(SERVE), "--json").document == {
        "ready": True,
        "address": "127.0.0.1:8123",
        "http": None,
        "metrics": "http://127.0.0.1:8124/metrics",
        "tasks": 3,
        "generation": 7,
    }


def test_the_line_has_the_http_port_where_there_is_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.server.run_server", Started(http_port=8125))
    assert "8123, HTTP on http://127.0.0.1:8125, metrics on" in house.run(SERVE).out
    assert done(*house.words(SERVE), "--json").document["http"] == "http://127.0.0.1:8125"


def test_serve_ends_with_the_servers_exit_code(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.server.run_server", Started(code=1))
    assert house.run(SERVE).code == 1


def test_the_command_line_goes_over_the_environment_over_the_file(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started()
    monkeypatch.setattr("serving.server.run_server", started)
    file = tmp_path / "serve.toml"
    file.write_text("port = 1\nmetrics_port = 2\ngrace_s = 3\n[batch]\nmax_batch_rows = 4\n", encoding="utf-8")
    for name, value in {
        "BACKBONE": str(house / "t5"),
        "REGISTRY": str(house / "registry"),
        "CONFIG": str(file),
        "PORT": "11",
        "METRICS_PORT": "12",
        "POLL_S": "0.5",
    }.items():
        monkeypatch.setenv(f"SIDECAST_{name}", value)
    done("serve", "--port", 21)
    config = started.config
    assert (config.backbone, config.registry) == (str(house / "t5"), str(house / "registry"))
    assert (config.port, config.metrics_port, config.grace_s) == (21, 12, 3.0)
    assert (config.batch.max_batch_rows, config.load.poll_s) == (4, 0.5)


def test_a_mistake_in_the_environment_names_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAST_PORT", "http")
    told = sidecast("serve", "--backbone", house / "t5", "--registry", house / "registry").mistake
    assert told == "Invalid value for '--port': 'http' is not a valid integer. (from SIDECAST_PORT)"
    monkeypatch.setenv("SIDECAST_PORT", "")
    monkeypatch.setenv("SIDECAST_DEVICE", "nope")
    assert "--device nope cannot be used here" in house.run(f"{TRAIN} --output @/new").mistake


def test_registry_and_server_come_from_the_environment(
    house: House, parlour: Parlour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDECAST_REGISTRY", str(house / "registry"))
    assert "letters" in done("tasks").out
    assert "sst2" in done("tasks", "--server", parlour.address).out
    monkeypatch.setenv("SIDECAST_SERVER", parlour.address)
    assert "got --registry and --server" in sidecast("tasks").mistake
    assert "letters" in done("tasks", "--registry", house / "registry").out
    assert "positive" in done("predict", "sst2", "x" * 80).out
    assert "no answer from" in sidecast("predict", "sst2", "a", "--server", NOBODY).mistake
    monkeypatch.setenv("SIDECAST_BACKBONE", str(house / "t5"))
    monkeypatch.delenv("SIDECAST_SERVER")
    assert "letters version 1: accuracy" in done(*house.words(EVALUATE)).out
    assert "another backbone" in sidecast(*house.words(EVALUATE), "--backbone", house / "other-t5").mistake
    assert done(*house.words(EVALUATE), "--run", house / "run-2", "--json").document["source"] == "run"
