from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import Registry
from tests.side_registry.clock import FakeClock
from tests.side_registry.runs import make_run, memory_store


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """In place of the suite's: the registry does not import torch, so its threads need no limit."""


@pytest.fixture
def registry() -> Registry:
    return Registry.open(memory_store(), create=True)


@pytest.fixture
def local(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry", create=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The time of registries and of their waits, from now on."""
    fake = FakeClock()
    for module in ("registry", "servers"):
        monkeypatch.setattr(f"side_registry.{module}.time", fake)
    return fake


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Make the run folder of one training: `run(2)` and `run(2, "cola")` differ in bytes, `run(2)` twice does not."""

    def make(number: int = 1, task: str = "sst2") -> Path:
        return make_run(tmp_path / "runs" / f"{task}-{number}", task, b"weights %d" % number, f"run-{number}")

    return make
