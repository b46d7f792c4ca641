"""The manifests are what Kubernetes takes, and what is said twice agrees."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.config import read_config
from tests.deploy.kit import DEPLOY, KUBERNETES, RAY, ROOT, SINGLE, build, only, overlay, pods, port, with_components
from tests.marks import slow

OURS = ("ray.io", "monitoring.coreos.com", "networking.istio.io", "gateway.envoyproxy.io")
"""API groups that are not Kubernetes' own; it has no schemas of them."""


def check(thing: dict[str, Any], version: str) -> None:
    import kubernetes_validate

    if not thing["apiVersion"].startswith(OURS):
        kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize("version", ["1.37", slow("1.32")])
@pytest.mark.parametrize("name", ["single", slow("single-gpu"), slow("ray/cpu"), slow("ray/one-gpu"), "ray/many-gpus"])
def test_objects_and_pods_fit_the_schemas_of_kubernetes(name: str, version: str) -> None:
    objects = overlay(name)
    for each in objects:
        check(each, version)
    for pod in pods([each for each in objects if each["kind"] == "RayService"]):
        check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}, version)


def test_a_misspelt_field_is_found() -> None:
    deployment = yaml.safe_load((KUBERNETES / "single/deployment.yaml").read_text())
    deployment["spec"]["template"]["spec"]["terminationGraceSeconds"] = 45
    with pytest.raises(Exception, match="terminationGraceSeconds"):
        check(deployment, "1.37")


def test_files_are_yaml() -> None:
    for file in DEPLOY.rglob("*.yaml"):
        assert list(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)), file


@pytest.mark.parametrize("name", [*SINGLE, *RAY])
def test_containers_are_confined(name: str) -> None:
    for pod in pods(overlay(name)):
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["readOnlyRootFilesystem"]
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}


@pytest.mark.parametrize("name", [*SINGLE, *RAY])
def test_images_are_set_in_one_place_and_have_a_tag(name: str) -> None:
    images = {container["image"] for pod in pods(overlay(name)) for container in pod["spec"]["containers"]}
    assert {image.split(":")[0] for image in images} <= {"registry.example.com/sidecast", "redis"}
    assert all(":" in image for image in images)


def test_a_single_server_has_time_to_drain() -> None:
    pod = only("Deployment", overlay("single"))["spec"]["template"]
    config = read_config({}, environ={}, file=KUBERNETES / "single/sidecast.toml")
    (container,) = pod["spec"]["containers"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > sleep + config.grace_s


def test_a_single_server_is_probed_where_it_listens() -> None:
    pod = only("Deployment", overlay("single"))["spec"]["template"]
    config = read_config({}, environ={}, file=KUBERNETES / "single/sidecast.toml")
    (container,) = pod["spec"]["containers"]
    assert config.host == "0.0.0.0"
    assert {container[f"{each}Probe"]["grpc"]["port"] for each in ("startup", "readiness", "liveness")} == {config.port}
    assert (port(pod, "grpc"), port(pod, "server-metrics")) == (config.port, config.metrics_port)
    assert str(config.threads) == container["resources"]["limits"]["cpu"]


@pytest.mark.parametrize(("name", "gpus"), [("single", None), ("single-gpu", "1")])
def test_the_overlay_decides_on_the_gpu(name: str, gpus: str | None) -> None:
    (container,) = only("Deployment", overlay(name))["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus


@pytest.mark.parametrize(("name", "kind"), [("single", "Deployment"), ("ray/cpu", "RayService")])
def test_backbones_can_be_kept_on_a_volume(tmp_path: Path, name: str, kind: str) -> None:
    objects = with_components(tmp_path, name, "components/models-volume")
    claim = only("PersistentVolumeClaim", objects)["metadata"]["name"]
    servers = list(pods([only(kind, objects)]))[-1]
    volumes = {each["name"]: each for each in servers["spec"]["volumes"]}
    assert volumes["models"] == {"name": "models", "persistentVolumeClaim": {"claimName": claim}}


def test_the_monitor_finds_the_pods_and_ports() -> None:
    monitor = only("PodMonitor", build(DEPLOY / "prometheus"))
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert "server-metrics" in [each["port"] for each in monitor["spec"]["podMetricsEndpoints"]]
    for name in ("single", "ray/cpu"):
        servers = list(pods(overlay(name)))[-1]
        assert servers["metadata"]["labels"].items() >= wanted.items()
        assert port(servers, "server-metrics")


def test_budgets_select_the_pods() -> None:
    for name in ("single", "ray/many-gpus"):
        servers = list(pods(overlay(name)))[-1]
        budget = only("PodDisruptionBudget", overlay(name))["spec"]["selector"]["matchLabels"]
        from_kuberay = {"ray.io/node-type": "worker"}
        assert (servers["metadata"]["labels"] | from_kuberay).items() >= budget.items()


@pytest.mark.parametrize("name", RAY)
def test_budgets_of_a_ray_cluster_let_a_pod_go(name: str) -> None:
    """Only a number of pods that must stay can be told for a resource without a scale; there must be more."""
    objects = overlay(name)
    service = only("RayService", objects)["spec"]
    scaling = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"].get("autoscaling", {})
    fewest = scaling.get("min_replicas", 1)  # a pod each
    for budget in (each["spec"] for each in objects if each["kind"] == "PodDisruptionBudget"):
        assert "maxUnavailable" not in budget
        assert isinstance(budget["minAvailable"], int)
        assert budget["minAvailable"] < fewest


def test_the_unit_waits_for_no_sign_that_the_server_does_not_give() -> None:
    unit = (DEPLOY / "systemd/sidecast.service").read_text()
    assert "TimeoutStartSec" not in unit or "Type=notify" in unit


def test_the_page_names_files_that_exist() -> None:
    page = (ROOT / "docs/deploying.md").read_text()
    named = set(re.findall(r"deploy/[\w./-]+\w", page)) - {"deploy/"}
    assert len(named) > 5
    assert not [each for each in named if not (ROOT / each).exists()]
