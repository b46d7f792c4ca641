"""Backbones with random weights and a tokenizer of bytes: no download, and nothing to carry along."""

import json
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.models import Loaded, load
from benchmarks.random_backbone import write_random
from ladder.config import BackboneConfig
from ladder.side import NAMED

WORDS = 384
"""Rows of the embedding in a quick run: enough for bytes."""


def shape_of(name: str, quick: bool) -> BackboneConfig:
    """Return the shape of a published backbone; with `quick`, shrunk to two blocks of a few numbers."""
    config = NAMED[name].config
    if not quick:
        return config
    small = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
    return replace(config, vocab_size=WORDS, **small)


def write(config: BackboneConfig, folder: Path, seed: int = 0) -> Path:
    """Write a T5 of this shape in bfloat16, and the tokenizer of bytes, which needs no file."""
    write_random(config, folder, seed)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}), encoding="utf-8")
    return folder


def loaded(folder: Path, device: str, dtype: str) -> Loaded:
    """Load such a folder."""
    return load(str(folder), device=device, dtype=dtype)
