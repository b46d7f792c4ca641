"""A tiny random backbone and its tokenizer for all of serving's tests."""

from pathlib import Path

import pytest

from ladder import Backbone, Tokenizer, load_backbone, load_tokenizer


@pytest.fixture(scope="session")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5, dtype="float32")


@pytest.fixture(scope="session")
def tokenizer(tiny_t5: Path) -> Tokenizer:
    return load_tokenizer(tiny_t5)
