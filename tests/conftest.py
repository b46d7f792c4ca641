"""Shared fixtures: one torch thread, tiny random T5s, a tiny tokenizer."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from tests import tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a random T5 1.1 (gated GELU, untied head) and a tokenizer."""
    return tiny.make_t5(tmp_path_factory.mktemp("backbones") / "tiny-t5")
