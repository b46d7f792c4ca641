"""The golden files of the LST authors' code as files for commands: a Hugging Face folder, checkpoints."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.ladder import golden_visual
from tests.ladder.golden import FOLDER, VARIANTS, manifest


def golden_file(variant: str) -> Path:
    return FOLDER / f"{VARIANTS[variant]}.safetensors"


def inputs_file() -> Path:
    return FOLDER / "inputs.safetensors"


@cache
def tensors(variant: str) -> dict[str, torch.Tensor]:
    return load_file(golden_file(variant))


def settings(variant: str) -> dict[str, Any]:
    return manifest()["files"][golden_file(variant).name]["settings"]


def make_backbone(folder: Path) -> Path:
    """The goldens' random T5 as a Hugging Face folder, without a tokenizer."""
    folder.mkdir()
    config = {"model_type": "t5", **manifest()["config"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(FOLDER / "backbone.safetensors")
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def make_visual_backbone(folder: Path, rows: int) -> Path:
    """The T5 of golden/vl as a Hugging Face folder, with the first `rows` of its vocabulary."""
    folder.mkdir()
    config = {"model_type": "t5", **golden_visual.manifest()["config"], "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    theirs = golden_visual.group("w.")
    weights = {name: tensor.clone() for name, tensor in theirs.items() if "side_" not in name and "visual" not in name}
    weights["shared.weight"] = weights["shared.weight"][:rows].clone()
    save_file(weights, folder / "model.safetensors")
    return folder


def side_tensors(variant: str) -> dict[str, torch.Tensor]:
    """A side network under the authors' names, as their code saves it."""
    return {name.removeprefix("w."): t for name, t in tensors(variant).items() if name.startswith("w.")}


def whole_model(variant: str) -> dict[str, torch.Tensor]:
    """Side network and backbone, as the authors' trainer saves both."""
    return {**load_file(FOLDER / "backbone.safetensors"), **side_tensors(variant)}
