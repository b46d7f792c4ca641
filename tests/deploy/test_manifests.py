"""The manifests are what Kubernetes takes, and what is said twice agrees."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.access import check_exposure
from serving.config import read_config
from serving.http.port import DEFAULT_PORT
from tests.deploy.kit import (
    CHART,
    DEPLOY,
    KUBERNETES,
    RAY,
    ROOT,
    SINGLE,
    build,
    check,
    only,
    overlay,
    pods,
    port,
    startup_s,
    with_components,
)
from tests.marks import slow


@pytest.mark.parametrize("version", ["1.37", slow("1.32")])
@pytest.mark.parametrize("name", ["single", slow("single-gpu"), slow("ray/cpu"), slow("ray/one-gpu"), "ray/many-gpus"])
def test_objects_and_pods_fit_the_schemas_of_kubernetes(name: str, version: str) -> None:
    objects = overlay(name)
    for each in objects:
        check(each, version)
    for pod in pods([each for each in objects if each["kind"] == "RayService"]):
        check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}, version)


def test_the_runtime_of_kserve_is_a_pod_of_the_server() -> None:
    """KServe's own schemas are not here; what a runtime says of its pod are Kubernetes' fields."""
    objects = build(DEPLOY / "kserve")
    runtime = only("ServingRuntime", objects)["spec"]
    predictor = only("InferenceService", objects)["spec"]["predictor"]
    model = predictor.pop("model")
    pod = {"spec": {"containers": runtime["containers"], "volumes": runtime["volumes"]}}
    check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}, "1.37")
    assert model["modelFormat"]["name"] in [each["name"] for each in runtime["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["protocolVersions"]
    (container,) = runtime["containers"]
    environment = {each["name"]: each["value"] for each in [*container["env"], *model["env"]]}
    _, *words = container["args"]
    options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    config = read_config(options, environ=environment)
    assert config.registry == "s3://example-bucket/registry"
    check_exposure("0.0.0.0", config.access)
    assert str(config.threads) == container["resources"]["limits"]["cpu"]
    assert (port(pod, "h2c"), port(pod, "server-metrics")) == (config.port, config.metrics_port)
    assert {container[f"{each}Probe"]["grpc"]["port"] for each in ("startup", "readiness", "liveness")} == {config.port}
    assert predictor["terminationGracePeriodSeconds"] > config.grace_s + 5


def test_a_misspelt_field_is_found() -> None:
    deployment = yaml.safe_load((KUBERNETES / "single/deployment.yaml").read_text())
    deployment["spec"]["template"]["spec"]["terminationGraceSeconds"] = 45
    with pytest.raises(Exception, match="terminationGraceSeconds"):
        check(deployment, "1.37")


def test_files_are_yaml() -> None:
    for file in set(DEPLOY.rglob("*.yaml")) - set(CHART.glob("templates/*")):
        assert list(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)), file


@pytest.mark.parametrize("name", [*SINGLE, *RAY])
def test_containers_are_confined(name: str) -> None:
    for pod in pods(overlay(name)):
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
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
    ours = "registry.example.com/sidecast-ray" if name in RAY else "registry.example.com/sidecast"
    assert {image.split(":")[0] for image in images} <= {ours, "redis"}
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
    assert port(pod, "http") == DEFAULT_PORT
    service = only("Service", overlay("single"))["spec"]["ports"]
    assert {each["targetPort"]: each["port"] for each in service} == {"grpc": config.port, "http": DEFAULT_PORT}
    callers, _ = only("NetworkPolicy", overlay("single"))["spec"]["ingress"]
    assert [each["port"] for each in callers["ports"]] == ["grpc", "http"]
    assert str(config.threads) == container["resources"]["limits"]["cpu"]


def mebibytes(memory: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", memory).groups()  # pyright: ignore
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


@pytest.mark.parametrize(("tasks", "components"), [(512, []), (10_000, ["components/ten-thousand-tasks"])])
def test_time_to_start_and_memory_follow_the_number_of_tasks(tmp_path: Path, tasks: int, components: list[str]) -> None:
    """The rule of docs/operation/deploying.md allows a task twice the time and 1.5 times the memory measured."""
    objects = with_components(tmp_path, "single", *components)
    (container,) = only("Deployment", objects)["spec"]["template"]["spec"]["containers"]
    assert startup_s(container["startupProbe"]) == 600 + tasks / 4
    assert {mebibytes(each["memory"]) for each in container["resources"].values()} == {3072 + 2 * tasks}
    report = json.loads((ROOT / "benchmarks/results/2026-11-21-amd-epyc.json").read_text())
    one, many = report["reports"]["many"]["settings"]["served"]
    more = many["tasks"] - one["tasks"]
    assert 2 * (many["start_s"] - one["start_s"]) / more < 1 / 4
    assert 1.5 * 1e9 * (many["gigabytes"] - one["gigabytes"]) / more < 2 * 2**20


def test_an_update_on_gpus_needs_no_spare_one() -> None:
    assert only("Deployment", overlay("single-gpu"))["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": 0,
        "maxUnavailable": 1,
    }


@pytest.mark.parametrize("name", [*SINGLE, *RAY])
def test_servers_have_an_account_of_their_own_without_rights(name: str) -> None:
    objects = overlay(name)
    account = only("ServiceAccount", objects)
    servers = list(pods([each for each in objects if each["kind"] in ("Deployment", "RayService")]))[-1]
    assert servers["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    assert not [each for each in objects if each["kind"].endswith("RoleBinding")]


INSTANCE = "app.kubernetes.io/instance"


def selectors(thing: Any) -> Iterator[dict[str, str]]:
    """Yield the labels of every selector within an object."""
    if isinstance(thing, list):
        for each in thing:
            yield from selectors(each)
    elif isinstance(thing, dict):
        for name, value in thing.items():
            if name == "selector":
                yield value.get("matchLabels", value)
            elif name in ("labelSelector", "podSelector") and value:
                yield value["matchLabels"]
            else:
                yield from selectors(value)


@pytest.mark.parametrize("name", [*SINGLE, *RAY])
def test_every_selector_names_the_instance(name: str) -> None:
    objects = overlay(name)
    found = [labels for each in objects for labels in selectors(each)]
    assert len(found) >= 2
    assert {labels.get(INSTANCE) for labels in found} == {"sidecast"}
    assert {pod["metadata"]["labels"][INSTANCE] for pod in pods(objects)} == {"sidecast"}


def test_two_servers_in_one_namespace_are_apart(tmp_path: Path) -> None:
    """By what docs/operation/deploying.md says to write for a second one."""
    page = (ROOT / "docs/operation/deploying.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    file = yaml.safe_load(example)
    file["resources"] = [os.path.relpath(KUBERNETES / "single", tmp_path)]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(file))
    second = build(tmp_path)
    assert {labels[INSTANCE] for each in second for labels in selectors(each)} == {"summaries"}
    names = [{(each["kind"], each["metadata"]["name"]) for each in objects} for objects in (overlay("single"), second)]
    assert names[0] & names[1] == {("Namespace", "sidecast")}


@pytest.mark.parametrize("name", SINGLE)
def test_the_policy_opens_the_ports_of_the_pod(name: str) -> None:
    objects = overlay(name)
    policy = only("NetworkPolicy", objects)["spec"]
    pod = only("Deployment", objects)["spec"]["template"]
    calls, metrics = policy["ingress"]
    assert [port(pod, each["port"]) for each in calls["ports"]] == [8001, 8000]
    assert [port(pod, each["port"]) for each in metrics["ports"]] == [8002]
    assert {} not in calls["from"]
    assert {"namespaceSelector": {}} not in calls["from"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_the_policy_for_ray_opens_the_ports_of_its_pods(tmp_path: Path) -> None:
    objects = with_components(tmp_path, "ray/many-gpus", "components/ray-network-policy")
    policy = only("NetworkPolicy", objects)
    check(policy, "1.37")
    for pod in pods(objects):
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    within, calls, kuberay, metrics = policy["spec"]["ingress"]
    assert within == {"from": [{"podSelector": policy["spec"]["podSelector"]}]}
    head, workers = pods([only("RayService", objects)])
    served = yaml.safe_load(only("RayService", objects)["spec"]["serveConfigV2"])
    assert [each["port"] for each in calls["ports"]] == [served["grpc_options"]["port"]]
    assert {each["port"] for each in kuberay["ports"]} == {port(head, "dashboard"), served["http_options"]["port"]}
    assert port(workers, "server-metrics") in [each["port"] for each in metrics["ports"]]


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
    page = (ROOT / "docs/operation/deploying.md").read_text()
    named = set(re.findall(r"deploy/[\w./-]+\w", page)) - {"deploy/"}
    assert len(named) > 5
    assert not [each for each in named if not (ROOT / each).exists()]


def test_a_server_that_lets_everybody_in_says_so() -> None:
    config = read_config({}, environ={}, file=KUBERNETES / "single/sidecast.toml")
    assert config.access.insecure
    check_exposure(config.host, config.access)
