"""Shared fixtures: one torch thread, a tiny random T5 with its tokenizer, the demo's backbone.

Imports torch inside the fixtures: with `-n 2` a third process, which runs no test, imports this file too.
"""

import gc
import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if platform.machine() == "x86_64":  # servers then choose float32 on every machine, as the tests expect
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

import pytest


def pytest_collection_finish() -> None:
    """Exclude imported modules and collected tests from garbage collection: they live until the end."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print one line for each reason to skip. pytest's `-rs` has a line for each test file."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"SKIPPED [{count}] {reason.removeprefix('Skipped: ')}")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_backbone() -> Path:
    """The demo's backbone, from its cache, or made from its package."""
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
