"""The RayServices: Ray takes the configuration, and it agrees with the pods."""

import importlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from serving.cluster.local_cluster import AFFINITY, ENVIRONMENT
from serving.config import ServeConfig, setting_names
from tests.deploy.kit import RAY, Objects, only, overlay, pods, port, with_components

if TYPE_CHECKING:  # imported by the fixtures: Ray takes seconds
    from ray.serve.schema import ServeDeploySchema

    from serving.cluster.app import AppArgs


@pytest.fixture(params=RAY)
def objects(request: pytest.FixtureRequest) -> Objects:
    return overlay(request.param)


@pytest.fixture
def service(objects: Objects) -> dict[str, Any]:
    return only("RayService", objects)["spec"]


@pytest.fixture
def cluster(service: dict[str, Any]) -> dict[str, Any]:
    return service["rayClusterConfig"]


@pytest.fixture
def served(service: dict[str, Any]) -> "ServeDeploySchema":
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))


@pytest.fixture
def args(served: "ServeDeploySchema") -> "AppArgs":
    from serving.cluster.app import AppArgs

    (application,) = served.applications
    return AppArgs.model_validate(application.args)


def test_the_application_and_its_servicers_can_be_imported(served: "ServeDeploySchema") -> None:
    paths = [application.import_path.replace(":", ".") for application in served.applications]
    for path in [*paths, *(each.replace(":", ".") for each in served.grpc_options.grpc_servicer_functions)]:
        module, name = path.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), name)), path


def test_settings_are_those_of_the_server(args: "AppArgs") -> None:
    assert set(args.settings) <= set(setting_names())
    ServeConfig.from_values(args.settings)


def test_ports_agree(objects: Objects, service: dict[str, Any], served: "ServeDeploySchema", args: "AppArgs") -> None:
    head, workers = pods([only("RayService", objects)])
    grpc = served.grpc_options.port
    assert port(head, "serve") == grpc
    assert [(each["name"], each["port"]) for each in service["serveService"]["spec"]["ports"]] == [("serve", grpc)]
    (container,) = workers["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["port"] == served.http_options.port
    assert port(workers, "server-metrics") == ServeConfig.from_values(args.settings).metrics_port


def test_head_and_workers_start_as_the_application_needs(objects: Objects, cluster: dict[str, Any]) -> None:
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["rayVersion"] == version("ray")
    for pod in pods([only("RayService", objects)]):
        (container,) = pod["spec"]["containers"]
        env = {each["name"]: each["value"] for each in container["env"]}
        assert env == {name: value for name, value in ENVIRONMENT.items() if name != "RAY_USAGE_STATS_ENABLED"}


def test_affinity_is_what_deploy_starts_a_cluster_with(tmp_path: Path) -> None:
    for pod in pods([only("RayService", with_components(tmp_path, "ray/cpu", "components/affinity"))]):
        (container,) = pod["spec"]["containers"]
        env = {each["name"]: each["value"] for each in container["env"]}
        assert {name: env[name] for name in AFFINITY} == AFFINITY


def test_rays_ports_ask_for_a_token(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}


def test_a_pod_holds_one_replica(cluster: dict[str, Any], args: "AppArgs") -> None:
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = float(limits.get("nvidia.com/gpu", 0))
    assert args.cpus <= float(limits["cpu"])
    assert args.gpus == gpus
    assert gpus or 2 * args.cpus > float(limits["cpu"])


def test_there_is_a_pod_for_each_replica_and_for_one_that_takes_over(cluster: dict[str, Any], args: "AppArgs") -> None:
    (group,) = cluster["workerGroupSpecs"]
    most = args.autoscaling.max_replicas if args.autoscaling else args.replicas or 1
    assert group["minReplicas"] <= most < group["maxReplicas"]


def test_a_worker_outlives_its_calls(cluster: dict[str, Any], args: "AppArgs") -> None:
    (group,) = cluster["workerGroupSpecs"]
    spec = group["template"]["spec"]
    command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    sleep, limit = int(command.rsplit("sleep ", 1)[1]), int(command.split("timeout ")[1].split()[0])
    assert args.grace_s < sleep
    assert limit + sleep < spec["terminationGracePeriodSeconds"]


def test_the_heads_memory_is_redis_with_a_password(objects: Objects, cluster: dict[str, Any]) -> None:
    options = cluster["gcsFaultToleranceOptions"]
    host, number = options["redisAddress"].split(":")
    redis = next(each for each in objects if each["kind"] == "Service")
    assert (redis["metadata"]["name"], redis["spec"]["ports"][0]["port"]) == (host, int(number))
    (container,) = only("StatefulSet", objects)["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]
    assert not [each for each in objects if each["kind"] == "Secret"], "passwords are the user's"


def test_upgrades_are_what_kuberay_takes(service: dict[str, Any]) -> None:
    """Its rules, which no schema tells: ray-operator's validation of a RayService."""
    strategy = service["upgradeStrategy"]
    if strategy["type"] == "NewClusterWithIncrementalUpgrade":
        options = strategy["clusterUpgradeOptions"]
        assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
        assert options["intervalSeconds"] > 0
        assert options["gatewayClassName"]
        assert service["rayClusterConfig"]["enableInTreeAutoscaling"]
    else:
        assert strategy == {"type": "NewCluster"}


def test_one_gpu_needs_no_gateway() -> None:
    kinds = [each["kind"] for each in overlay("ray/one-gpu")]
    assert "DestinationRule" not in kinds
    assert only("RayService", overlay("ray/one-gpu"))["spec"]["upgradeStrategy"] == {"type": "NewCluster"}


def test_another_gateway_can_be_taken(tmp_path: Path) -> None:
    objects = with_components(tmp_path, "ray/cpu", "ray/gateway-envoy")
    service = only("RayService", objects)
    route = only("BackendTrafficPolicy", objects)["spec"]["targetRefs"][0]["name"]
    assert service["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]["gatewayClassName"] == "envoy"
    assert route == f"{service['metadata']['name']}-httproute"


def test_the_gateways_rule_is_of_this_namespace() -> None:
    rule = only("DestinationRule", overlay("ray/cpu"))
    assert rule["spec"]["host"] == f"*.{rule['metadata']['namespace']}.svc.cluster.local"
