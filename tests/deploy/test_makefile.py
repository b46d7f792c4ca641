"""The Makefile's stamps: each target installs the packages that it lacks, and nothing twice. pip is a stand-in."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.deploy.kit import ROOT

PYTHON = """#!/bin/sh
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip "*) echo "$*" >> pip.log; test ! -e broken || exit 1 ;;
esac
"""


class Clone:
    """A clone with the Makefile alone, and a `python` that writes down what it is asked to install."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "Makefile", folder)
        for name in ("pyproject.toml", "constraints.txt"):
            (folder / name).touch()
        interpreter = folder / "interpreter"
        interpreter.write_text(PYTHON)
        interpreter.chmod(0o755)

    def make(self, target: str) -> list[str]:
        """Run a target and return what of Sidecast it installed: ".[dev]" for the extra `dev`."""
        return [line.split()[-1] for line in self.installs(target) if "--editable" in line]

    def installs(self, *words: str) -> list[str]:
        """Run make with these words and return what it asked of pip."""
        log = self.folder / "pip.log"
        log.write_text("")
        command = ["make", "--silent", "PYTHON=./interpreter", *words]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HASHED", "MAKE", "MFLAGS"))
        }
        subprocess.run(command, cwd=self.folder, env=environment, check=True, capture_output=True, timeout=60)
        return log.read_text().splitlines()

    def change_pins(self) -> None:
        """Make the lists of packages newer than all stamps."""
        later = time.time() + 10
        os.utime(self.folder / "constraints.txt", (later, later))


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.mark.parametrize(
    ("target", "installed"),
    [("setup", ".[serve,train]"), ("demo", ".[demo]"), ("test", ".[dev]"), ("setup-dev", ".[dev]")],
)
def test_a_target_installs_what_it_needs_once(clone: Clone, target: str, installed: str) -> None:
    assert clone.make(target) == [installed]
    assert clone.make(target) == []


@pytest.mark.parametrize(
    ("targets", "installed"),
    [
        (["setup", "demo", "test"], [".[serve,train]", ".[demo]", ".[dev]"]),
        (["demo", "test", "demo"], [".[demo]", ".[dev]"]),
        (["test", "demo", "setup"], [".[dev]"]),
        (["demo", "setup"], [".[demo]"]),
    ],
    ids=" ".join,
)
def test_no_order_of_targets_lacks_packages_or_installs_again(
    clone: Clone, targets: list[str], installed: list[str]
) -> None:
    assert [package for target in targets for package in clone.make(target)] == installed


def test_other_pins_are_installed_by_each_kind(clone: Clone) -> None:
    clone.make("test")
    clone.change_pins()
    assert clone.make("demo") == [".[demo]"]
    assert clone.make("test") == [".[dev]"]


def test_an_installation_that_failed_is_done_again(clone: Clone) -> None:
    (clone.folder / "broken").touch()
    with pytest.raises(subprocess.CalledProcessError):
        clone.make("demo")
    (clone.folder / "broken").unlink()
    assert clone.make("demo") == [".[demo]"]


def test_in_ci_no_archive_but_those_of_the_lock_is_installed_and_torch_from_anywhere(clone: Clone) -> None:
    assert "export HASHED=1\n" in (ROOT / ".ci" / "run").read_text()
    locked, torch, ours = clone.installs("HASHED=1", "setup-dev")
    assert locked.endswith("--no-deps --require-hashes --requirement hashes.txt")
    assert torch.endswith("--constraint constraints.txt torch")
    assert ours.endswith("--constraint constraints.txt --no-index --no-build-isolation --editable .[dev]")
