"""The shared folder and server of the tests of commands, and an environment without settings."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.serving.api_kit import Parlour
from tests.sidecast.cli.house import TASK, TRAIN, House
from tests.training import toy


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("SIDECAST_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> House:
    folder = tmp_path_factory.mktemp("house")
    house = House(folder)
    shutil.copytree(tiny_t5, folder / "t5")
    tiny.make_t5(folder / "other-t5", seed=5)
    (folder / "letters.toml").write_text(TASK, encoding="utf-8")
    toy.write(folder / "train.jsonl", toy.rows(toy.CLASSES, 64))
    toy.write(folder / "validation.jsonl", toy.rows(toy.CLASSES, 30, seed=1))
    for seed in (1, 2):
        assert house.run(f"{TRAIN} --epochs 1 --seed {seed} --output @/run-{seed} --json").code == 0
        assert house.run(f"publish @/run-{seed} --registry @/registry").code == 0
    return house


@pytest.fixture
def registry(house: House, tmp_path: Path) -> Path:
    """A copy of the house's, to change."""
    return Path(shutil.copytree(house / "registry", tmp_path / "registry"))


@pytest.fixture(scope="package")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    """A server that answers by rule, which no test changes."""
    with Parlour(tmp_path_factory.mktemp("parlour")).open() as opened:
        yield opened
