"""A release is one version: in pyproject.toml, changelog, tags and image tags. CONTRIBUTING.md says how it is made."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.deploy.kit import DEPLOY, ROOT

VERSION = re.compile(r"\d+\.\d+\.\d+")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
READ_BY_THE_BUILD = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in", "constraints.txt")


def mistakes(version: str, changelog: str, tags: list[str]) -> list[str]:
    """What the version, the headings of the changelog and the tags say differently."""
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    versions = [heading for heading in headings if heading != "Unreleased"]
    found = [f"the heading {name!r} is no version" for name in versions if not VERSION.fullmatch(name)]
    if found:
        return found
    numbers = [tuple(map(int, name.split("."))) for name in versions]
    if "Unreleased" in headings[1:] or numbers != sorted(numbers, reverse=True):
        found.append("the newest section is not the first")
    if versions[:1] != [version]:
        found.append(f"the newest version of the changelog is not {version}")
    found += [f"the tag {tag} has no section" for tag in tags if tag not in {f"v{name}" for name in versions}]
    return found


def test_version_changelog_and_tags_agree() -> None:
    git = subprocess.run(["git", "tag", "--list"], cwd=ROOT, capture_output=True, text=True, check=False)
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert not mistakes(PROJECT["project"]["version"], changelog, git.stdout.split())


@pytest.mark.parametrize(
    ("version", "headings", "tag", "mistake"),
    [
        ("0.2.0", "## Unreleased\n## 0.1.0", "v0.1.0", "the newest version of the changelog is not 0.2.0"),
        ("0.2.0", "## 0.2.0\n## Unreleased", "v0.2.0", "the newest section is not the first"),
        ("0.10.0", "## 0.10.0\n## 0.9.0\n## 0.11.0", "v0.9.0", "the newest section is not the first"),
        ("0.1.0", "## 0.1.0", "0.1.0", "the tag 0.1.0 has no section"),
        ("0.1.0", "## v0.1.0", "v0.1.0", "the heading 'v0.1.0' is no version"),
    ],
)
def test_what_is_said_differently_is_found(version: str, headings: str, tag: str, mistake: str) -> None:
    assert mistakes(version, headings + "\n", [tag]) == [mistake]


def test_images_have_the_version() -> None:
    files = [*DEPLOY.rglob("kustomization.yaml"), *(ROOT / "docs").rglob("*.md")]
    named = {
        file: re.findall(r'sidecast(?:-ray)?:(\d[\w.]*)|newTag: "(.+)"', file.read_text("utf-8")) for file in files
    }
    versions = {file.name: {"".join(match) for match in matches} for file, matches in named.items() if matches}
    assert len(versions) >= 2
    assert all(each == {PROJECT["project"]["version"]} for each in versions.values()), versions


def test_the_command_says_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "sidecast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"sidecast, version {PROJECT['project']['version']}"


@pytest.mark.slow
def test_a_wheel_made_from_the_sdist_has_all_that_is_installed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    packages = [pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in packages:
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in READ_BY_THE_BUILD:
        shutil.copy(ROOT / name, source / name)
    build(source, "build_sdist", tmp_path)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    assert all((unpacked / name).is_file() for name in READ_BY_THE_BUILD)
    build(unpacked, "build_wheel", tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path.relative_to(source).as_posix() for name in packages for path in (source / name).rglob("*")}
    assert held == {name for name in files if (source / name).is_file() and not name.endswith(".md")}


def build(folder: Path, step: str, target: Path) -> None:
    """Run one step of the project's build backend."""
    call = f"from setuptools import build_meta; build_meta.{step}({str(target)!r})"
    subprocess.run([sys.executable, "-c", call], cwd=folder, capture_output=True, check=True)
