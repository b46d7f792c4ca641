"""What `pip install .` brings is what the installed packages import; what an extra brings is asked for in one line."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.deploy import lock
from tests.deploy.kit import ROOT

NAMES = {
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "PIL": "pillow",
    "jwt": "pyjwt",
    "sklearn": "scikit-learn",
    "opentelemetry": "opentelemetry-sdk",
    "yaml": "pyyaml",
}
"""Packages that are not called as the module that they bring."""
OF_AN_EXTRA = {
    "pydantic-core": "http",
    "starlette": "http",
    "typing-extensions": "http",
    "uvicorn": "http",
    "ray": "cluster",
    "requests": "cluster",
    "pyyaml": "cluster",
    "accelerate": "distributed",
    "peft": "absorb",
    "matplotlib": "plot",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "bitsandbytes": "quantized",
    "h5py": "hdf5",
    "timm": "timm",
    "opentelemetry-sdk": "otel",
    "pyjwt": "jwt",
    "cryptography": "signing",
    "model-signing": "signing",
}
"""Packages that a user's install lacks; each is imported where its absence is told by what to install."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-")  # pyright: ignore


def modules(project: dict[str, Any]) -> Iterator[Path]:
    """The installed modules; protos/generate.py is a development tool."""
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        yield from (path for path in (ROOT / pattern.rstrip("*")).rglob("*.py") if path.name != "generate.py")


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
        assert node.module
        yield node.module


def packages_of(tree: ast.AST, own: set[str]) -> set[str]:
    """The packages from outside that a module imports anywhere."""
    names = {name for node in ast.walk(tree) for name in imported(node)}
    found = set()
    for name in names:
        top = name.partition(".")[0]
        if top == "google":
            top = ".".join(name.split(".")[:2])
        if top not in sys.stdlib_module_names and top not in own:
            found.add(NAMES.get(top, top).replace("_", "-"))
    return found


def test_a_users_install_is_what_the_modules_import(project: dict[str, Any]) -> None:
    own = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    used = set().union(*(packages_of(ast.parse(path.read_text("utf-8")), own) for path in modules(project)))
    extras = project["project"]["optional-dependencies"]
    listed = [*project["project"]["dependencies"], *extras["model"], *extras["serve"], *extras["train"]]
    assert used - OF_AN_EXTRA.keys() == {package(each) for each in listed} - {"sidecast"}


def test_commands_know_what_the_base_lacks(project: dict[str, Any]) -> None:
    from sidecast.cli.missing import OF_EXTRAS

    extras = project["project"]["optional-dependencies"]
    lacking = {package(need) for name in ("absorb", "model", "serve", "train", "cluster") for need in extras[name]} - {
        "sidecast"
    }
    assert {NAMES.get(name, name).replace("_", "-") for name in OF_EXTRAS} == lacking | {"tokenizers"}


def test_extras_hold_what_the_other_imports_need(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    for name, extra in OF_AN_EXTRA.items():
        assert name in {package(each) for each in extras[extra]}
    development = {package(each) for each in extras["dev"]}
    assert {"pytest", "ruff", "moto", "kubernetes-validate"} <= development
    listed = {package(each) for name in ("cluster", "demo", "model", "serve", "train") for each in extras[name]}
    assert development & listed == {"sidecast"}
    held = set(re.findall(r"\w+", extras["dev"][0]))
    assert held - {"sidecast"} == extras.keys() - {"bench", "dev", "model", "timm"}  # timm's torchvision must fit torch


def test_everything_that_is_installed_is_pinned(project: dict[str, Any]) -> None:
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    pins = {name.replace("_", "-") for name in pins}
    lists = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    assert {package(each) for needs in lists for each in needs} - pins == {"sidecast"}


@pytest.fixture(scope="module")
def locked() -> dict[str, tuple[str, int]]:
    """Each package of the lock: its version, and how many archives it has hashes of."""
    found = {}
    for entry in re.split(r"\n(?=\S)", lock.LOCK.read_text(encoding="utf-8").removeprefix(lock.HEAD)):
        name, version = re.match(r"(\S+?)==(\S+)", entry).groups()  # pyright: ignore
        found[package(name).replace(".", "-")] = version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry))
    return found


def test_the_lock_has_the_pinned_versions_each_with_hashes(locked: dict[str, tuple[str, int]]) -> None:
    pins = dict(line.split("==") for line in lock.PINS.read_text().splitlines())
    pins = {package(name).replace(".", "-"): version for name, version in pins.items()}
    assert {name: version for name, (version, _) in locked.items() if pins.get(name, version) != version} == {}
    assert all(hashes for _, hashes in locked.values())


def test_the_lock_has_all_that_tests_and_checks_need_here_but_torch(locked: dict[str, tuple[str, int]]) -> None:
    assert needed("sidecast", "dev") - locked.keys() == {"sidecast", lock.LEFT_OUT}


def needed(name: str, *extras: str) -> set[str]:
    """An installed package, with these extras, and all that it needs; of torch and pip, they alone."""
    found, left = set(), [(name, extra) for extra in ("", *extras)]
    seen = set(left)
    while left:
        name, extra = left.pop()
        found.add(name)
        for text in importlib.metadata.requires(name) or () if name not in (lock.LEFT_OUT, "pip") else ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                new = {(package(need.name).replace(".", "-"), each) for each in ("", *need.extras)} - seen
                seen |= new
                left += new
    return found - {"pip"}
