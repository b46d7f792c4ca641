"""A tiny random backbone and its tokenizer for all of serving's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ladder import Backbone, Tokenizer, load_backbone, load_tokenizer
from tests.serving.api_kit import Parlour


@pytest.fixture(scope="session")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5, dtype="float32")


@pytest.fixture(scope="session")
def tokenizer(tiny_t5: Path) -> Tokenizer:
    return load_tokenizer(tiny_t5)


@pytest.fixture(scope="module")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    """A server that answers by a rule, without a model. A module's tests share it and leave it unchanged."""
    with Parlour(tmp_path_factory.mktemp("parlour")).open() as opened:
        yield opened
