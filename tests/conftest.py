"""Shared fixtures: one torch thread, tiny random T5s, a tiny tokenizer.

Imports torch where it is needed, not at the top: `-n 2` reads this file in a third process that runs no test.
"""

import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


def pytest_collection_finish() -> None:
    """What is imported and collected stays: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_backbone() -> Path:
    """The demo's backbone, from its cache or made once from its package."""
    from demo.backbone import get_backbone
    from demo.downloads import cache_folder
    from tests.paths import demo_packages

    with demo_packages():
        return get_backbone(cache_folder())


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random T5 1.1 (gated GELU, untied head) and a tokenizer."""
    from tests import tiny

    return tiny.make_t5(tmp_path_factory.mktemp("backbones") / "tiny-t5")
