"""The Helm chart renders what the plain manifests hold, and refuses wrong values."""

import copy
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.access import check_exposure
from serving.config import read_config
from tests.deploy.kit import CHART, ROOT, Objects, chart, check, only, overlay, run, startup_s, with_components
from tests.marks import slow

Object = dict[str, Any]
OF_HELM = {"app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"}


def compared(objects: Objects) -> Mapping[tuple[str, str], Object]:
    """The objects without what only one tool adds: kustomize a namespace and a hash, helm labels and a digest."""
    objects = copy.deepcopy([each for each in objects if each["kind"] != "Namespace"])
    settings = only("ConfigMap", objects)
    volume = next(
        each
        for each in only("Deployment", objects)["spec"]["template"]["spec"]["volumes"]
        if each["name"] == "settings"
    )
    assert volume["configMap"]["name"] == settings["metadata"]["name"]
    volume["configMap"]["name"] = settings["metadata"]["name"] = "settings"
    settings["data"] = {name: tomllib.loads(text) for name, text in settings["data"].items()}
    only("Deployment", objects)["spec"]["template"]["metadata"].pop("annotations", None)
    for each in objects:
        labels = each["metadata"].get("labels", {})
        each["metadata"]["labels"] = {name: value for name, value in labels.items() if name not in OF_HELM}
        if each["kind"] == "PersistentVolumeClaim":  # of a component, which the test's own overlay does not label
            each["metadata"] = {"name": each["metadata"]["name"]}
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


@pytest.mark.parametrize(
    ("name", "components", "sets"),
    [
        ("single", [], []),
        ("single-gpu", [], ["gpu.count=1"]),
        ("single", ["components/models-volume"], ["models.keep=true"]),
        ("single", ["components/ten-thousand-tasks"], ["tasks.count=10000"]),
        ("single-gpu", ["components/models-volume"], ["gpu.count=1", "models.keep=true"]),
    ],
    ids=["cpu", "gpu", "volume", "tasks", "gpu and volume"],
)
def test_chart_and_manifests_hold_the_same(tmp_path: Path, name: str, components: list[str], sets: list[str]) -> None:
    plain = with_components(tmp_path, name, *components) if components else overlay(name)
    assert compared(chart(*sets)) == compared(plain)


OTHER = (
    "gpu.count=2", "models.keep=true", "models.existingClaim=mine", "serviceAccount.create=false", "image.tag=1.0.1",
    "serviceAccount.name=robot", "image.pullSecrets[0].name=pull", "nodeSelector.disk=fast", "storeSecret=",
    "tolerations[0].operator=Exists", "networkPolicy.enabled=false", "podAnnotations.team=nlp",
)  # fmt: skip


@pytest.mark.parametrize("version", ["1.37", slow("1.32")])
@pytest.mark.parametrize("sets", [(), ("models.keep=true",), OTHER], ids=["defaults", "volume", "other values"])
def test_objects_fit_the_schemas_of_kubernetes(sets: tuple[str, ...], version: str) -> None:
    for each in chart(*sets, release="blue"):
        check(each, version)


def test_values_reach_the_pod() -> None:
    objects = chart(*OTHER)
    pod = only("Deployment", objects)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.com/sidecast:1.0.1"
    assert "envFrom" not in container
    assert pod["serviceAccountName"] == "robot"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["nodeSelector"] == {"disk": "fast"}
    assert len(pod["tolerations"]) == 2
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "mine"}} in pod["volumes"]
    assert {each["kind"] for each in objects} == {"ConfigMap", "Service", "PodDisruptionBudget", "Deployment"}


def test_more_settings_are_the_servers() -> None:
    text = "max_batch_rows = 32\n[limits.sst2]\nmax_task_rows = 8"
    settings = only("ConfigMap", chart("cpus=2", "graceSeconds=7", f"settings={text.replace('[', chr(92) + '[')}"))
    file = tomllib.loads(settings["data"]["sidecast.toml"])
    assert file["limits"] == {"sst2": {"max_task_rows": 8}}
    flat = {name: value for name, value in file.items() if name != "limits"}
    config = read_config(flat, environ={})
    assert (config.threads, config.grace_s, config.batch.max_batch_rows) == (2, 7, 32)


def test_new_settings_start_new_pods() -> None:
    digests = {
        only("Deployment", chart(*sets))["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        for sets in ((), ("registry=/other",), ("settings=max_batch_rows = 8",))
    }
    assert len(digests) == 3


def test_a_start_has_longer_with_more_tasks() -> None:
    def probe(*sets: str) -> Object:
        (container,) = only("Deployment", chart(*sets))["spec"]["template"]["spec"]["containers"]
        return container["startupProbe"]

    assert startup_s(probe("tasks.count=0")) == 600
    assert startup_s(probe("tasks.count=1000", "fetchSeconds=60")) == 60 + 1000 / 4


def test_releases_of_one_namespace_are_apart() -> None:
    blue = {(each["kind"], each["metadata"]["name"]) for each in chart("models.keep=true", release="blue")}
    green = {(each["kind"], each["metadata"]["name"]) for each in chart("models.keep=true", release="green")}
    assert not blue & green
    selectors = [only("Deployment", chart(release=name))["spec"]["selector"] for name in ("blue", "green")]
    assert selectors[0] != selectors[1]


@pytest.mark.parametrize("value", ["tasks.count=many", "gpus=1", "replicas=-1", "networkPolicy.client=x", "registry="])
def test_a_wrong_value_is_refused_by_name(value: str) -> None:
    done = run("helm", "template", "sidecast", CHART, "--set", value)
    assert done.returncode
    assert value.split("=")[0].split(".")[-1] in done.stderr


def test_helm_finds_no_fault() -> None:
    done = run("helm", "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout


def test_versions_are_the_projects() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["appVersion"] == about["version"] == project["version"]


def test_every_value_has_a_rule() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rules = json.loads((CHART / "values.schema.json").read_text())["properties"]
    assert values.keys() == rules.keys() - {"global"}
    for name, value in values.items():
        if isinstance(value, dict) and "properties" in rules[name]:
            assert value.keys() == rules[name]["properties"].keys(), name


SECRETS = ("access.tlsSecret=tls", "access.clientCA=true", "access.tokensSecret=tokens", "access.insecure=false")


def test_with_secrets_the_server_has_tls_and_tokens_and_is_probed_over_https() -> None:
    objects = chart(*SECRETS)
    for each in objects:
        check(each, "1.37")
    config = read_config(tomllib.loads(only("ConfigMap", objects)["data"]["sidecast.toml"]), environ={})
    check_exposure(config.host, config.access)
    pod = only("Deployment", objects)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    access = config.access
    for file in (access.tls_cert, access.tls_key, access.tls_client_ca, access.tokens):
        assert str(Path(file).parent) in mounts
    secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets == {"tls", "tokens"}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {config.metrics_port}
    assert {each["appProtocol"] for each in only("Service", objects)["spec"]["ports"]} == {"https"}
    assert {probe["scheme"] for probe in probes.values()} == {"HTTPS"}
    assert [probe["path"] for probe in probes.values()] == ["/readyz", "/readyz", "/healthz"]


def test_the_component_for_access_is_what_the_chart_makes(tmp_path: Path) -> None:
    names = ("access.tlsSecret=sidecast-tls", "access.tokensSecret=sidecast-tokens", "access.insecure=false")
    plain = with_components(tmp_path, "single", "components/access")
    chosen = {"chart": compared(chart(*names)), "component": compared(plain)}
    configs = {}
    for name, objects in chosen.items():
        pod = objects["Deployment", "sidecast"]["spec"]["template"]["spec"]
        environment = {each["name"]: each["value"] for each in pod["containers"][0].pop("env", [])}
        settings = objects["ConfigMap", "settings"].pop("data")["sidecast.toml"]
        file = tmp_path / f"{name}.toml"
        file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        configs[name] = read_config({}, environ=environment, file=file)
        pod["volumes"].sort(key=lambda volume: volume["name"])
    assert chosen["component"] == chosen["chart"]
    access = configs["component"].access
    assert access == configs["chart"].access
    assert not access.insecure


@pytest.mark.parametrize("missing", [0, 2])
def test_without_a_secret_it_installs_only_where_that_is_said(missing: int) -> None:
    sets = [value for place, value in enumerate(SECRETS) if place != missing]
    words = [word for value in sets for word in ("--set", value)]
    done = run("helm", "template", "sidecast", CHART, *words)
    assert done.returncode
    assert "give access.tlsSecret and access.tokensSecret, or access.insecure=true" in done.stderr
    settings = tomllib.loads(only("ConfigMap", chart(*sets[:-1]))["data"]["sidecast.toml"])
    assert settings["insecure"] is True
