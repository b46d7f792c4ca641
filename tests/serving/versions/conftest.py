"""A registry in a folder, a loader over it, and random side networks published to it."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ladder import Backbone, Tokenizer
from serving.config import LoadConfig
from serving.versions.loader import Loader
from side_registry import SIDE_NETWORK, Registry
from tests.serving.kit import make_run, make_spec


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry", create=True)


@pytest.fixture
def publish(registry: Registry, backbone: Backbone, tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., str]:
    """A function that publishes a random side network and returns the digest of its weights."""

    def make(spec=None, **how: Any) -> str:
        run = make_run(tmp_path / "run", backbone, tokenizer, spec or make_spec(), **how)
        published = registry.publish(run)
        return registry.manifest(published.task, published.version).files[SIDE_NETWORK].sha256

    return make


@pytest.fixture
def loader(
    registry: Registry, backbone: Backbone, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Loader]:
    """A loader whose folder for temporary files must be empty after the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield Loader(registry, backbone, tokenizer, LoadConfig())
    assert list(folder.iterdir()) == []
