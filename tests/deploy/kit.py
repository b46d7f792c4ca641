"""Builds the overlays of deploy/ as kubectl would apply them, and the chart as helm would, without a cluster."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CHART = DEPLOY / "helm/sidecast"
SINGLE = ("single", "single-gpu")
RAY = ("ray/cpu", "ray/one-gpu", "ray/many-gpus")

EXTENSIONS = ("ray.io", "monitoring.coreos.com", "networking.istio.io", "gateway.envoyproxy.io", "serving.kserve.io")
"""API groups that are not Kubernetes' own; it has no schemas of them."""

Objects = list[dict[str, Any]]


def run(program: str, *words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run kubectl, helm or promtool: the environment's, which tests/deploy/tools.py installs, or else the machine's.
    The test is skipped where there is none."""
    path = os.pathsep.join([f"{sys.prefix}/bin", os.environ.get("PATH", os.defpath)])
    found = shutil.which(program, path=path)
    if found is None:
        pytest.skip(f"needs {program}")
    return subprocess.run(
        [found, *map(str, words)], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


@functools.cache
def build(folder: Path) -> Objects:
    """Return the objects of a kustomization."""
    return _objects(run("kubectl", "kustomize", folder))


@functools.cache
def chart(*sets: str, release: str = "sidecast") -> Objects:
    """Return the objects of the chart, with values as `NAME=VALUE`."""
    values = [word for value in sets for word in ("--set", value)]
    return _objects(run("helm", "template", release, CHART, "--namespace", "sidecast", *values))


def _objects(done: subprocess.CompletedProcess[str]) -> Objects:
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def overlay(name: str) -> Objects:
    return build(KUBERNETES / name)


def with_components(folder: Path, name: str, *components: str) -> Objects:
    """Return the objects of an overlay with more components, from a new kustomization in `folder`."""
    file = {
        "resources": [os.path.relpath(KUBERNETES / name, folder)],
        "components": [os.path.relpath(KUBERNETES / component, folder) for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(file))
    return build(folder)


def only(kind: str, objects: Objects) -> dict[str, Any]:
    """Return the only object of a kind."""
    (only_object,) = [candidate for candidate in objects if candidate["kind"] == kind]
    return only_object


def pods(objects: Objects) -> Iterator[dict[str, Any]]:
    """Yield the pod templates of the objects."""
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet"):
            yield item["spec"]["template"]
        if item["kind"] == "RayService":
            cluster = item["spec"]["rayClusterConfig"]
            yield cluster["headGroupSpec"]["template"]
            yield from (group["template"] for group in cluster["workerGroupSpecs"])


def port(pod: dict[str, Any], name: str) -> int:
    """Return a named port of a pod's only container."""
    (container,) = pod["spec"]["containers"]
    return next(entry["containerPort"] for entry in container["ports"] if entry["name"] == name)


def startup_s(probe: dict[str, Any]) -> float:
    """How long a server may take to start, in seconds."""
    return probe["periodSeconds"] * probe["failureThreshold"]


def check(thing: dict[str, Any], version: str) -> None:
    """Compare an object with Kubernetes' schema of a version; unknown fields are refused."""
    import kubernetes_validate

    if not thing["apiVersion"].startswith(EXTENSIONS):
        kubernetes_validate.validate(thing, version, strict=True)
