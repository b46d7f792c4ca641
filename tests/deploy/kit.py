"""What deploy/ comes to: overlays as kubectl would apply them, without a cluster."""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SINGLE = ("single", "single-gpu")
RAY = ("ray/cpu", "ray/one-gpu", "ray/many-gpus")

Objects = list[dict[str, Any]]


@functools.cache
def build(folder: Path) -> Objects:
    """The objects of a kustomization."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def overlay(name: str) -> Objects:
    return build(KUBERNETES / name)


def with_components(folder: Path, name: str, *components: str) -> Objects:
    """An overlay with components that it does not list itself, from a kustomization in `folder`."""
    file = {
        "resources": [os.path.relpath(KUBERNETES / name, folder)],
        "components": [os.path.relpath(KUBERNETES / each, folder) for each in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(file))
    return build(folder)


def only(kind: str, objects: Objects) -> dict[str, Any]:
    """The one object of its kind."""
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def pods(objects: Objects) -> Iterator[dict[str, Any]]:
    """The pod templates in them."""
    for each in objects:
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield each["spec"]["template"]
        if each["kind"] == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            yield cluster["headGroupSpec"]["template"]
            yield from (group["template"] for group in cluster["workerGroupSpecs"])


def port(pod: dict[str, Any], name: str) -> int:
    """The port of that name of a pod's one container."""
    (container,) = pod["spec"]["containers"]
    return next(each["containerPort"] for each in container["ports"] if each["name"] == name)
