"""One registry and the servers that follow it. A server starts when a test first needs it, once for all tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ladder import Backbone, load_backbone, load_tokenizer
from serving.cluster.local_cluster import AFFINITY
from tests.conformance.cluster import LOOPBACK, Cluster
from tests.conformance.targets import Target, World
from tests.sidecast.cli_kit import Serving

TARGETS = (
    pytest.param("one_process", marks=pytest.mark.slow),
    pytest.param("ray_serve", marks=pytest.mark.cluster),
)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> World:
    backbone: Backbone = load_backbone(tiny_t5, dtype="float32")
    return World(tmp_path_factory.mktemp("conformance"), tiny_t5, backbone, load_tokenizer(tiny_t5))


@pytest.fixture(scope="session")
def one_process(world: World) -> Iterator[Target]:
    """`sidecast serve`."""
    file = world.folder / "serve.toml"
    file.write_text(_toml(world.settings), encoding="utf-8")
    with Serving(world.folder, "--config", file) as server:
        target = Target("one process", server.address, server.ready["http"], 1, lambda: [server.ready["metrics"]])
        yield target
        target.close()
        assert server.stop() == 0


@pytest.fixture(scope="session")
def ray_serve(world: World) -> Iterator[Target]:
    """Two replicas behind Ray's HAProxy, which sends equal inputs to the same one, on a cluster of this machine."""
    with Cluster(environment=AFFINITY) as cluster:
        cluster.deploy(world.settings, replicas=2, cpus=1)
        ports = [cluster.metrics_port, cluster.metrics_port + 1]
        urls = [f"http://{LOOPBACK}:{port}/metrics" for port in ports]
        target = Target("Ray Serve", cluster.address, f"http://{LOOPBACK}:{cluster.http_port}", 2, lambda: urls)
        yield target
        target.close()


@pytest.fixture(params=TARGETS, scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """Every target in turn."""
    return request.getfixturevalue(request.param)


def _toml(settings: dict[str, Any]) -> str:
    """Write flat settings and the limits of tasks as a settings file."""
    plain = {name: value for name, value in settings.items() if name != "task_limits"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    for task, limits in settings.get("task_limits", {}).items():
        lines += [f"[limits.{task}]", *(f"{name} = {json.dumps(value)}" for name, value in limits.items())]
    return "\n".join(lines) + "\n"
