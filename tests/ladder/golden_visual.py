"""Loads golden/vl, numbers of the LST authors' CLIP-T5, as our objects."""

import json
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ladder import Backbone, SideConfig, SideNetwork
from ladder.backbone import Images
from ladder.backbone.families import read_config
from ladder.backbone.families.t5 import backbone_name
from ladder.config import VisualConfig
from ladder.lst_compat.names import POSITIONS, authors_name
from tests.paths import GOLDEN

FOLDER = GOLDEN / "vl"
FILE = FOLDER / "v1_r4_full.safetensors"
ADDED = 100


def manifest() -> dict[str, Any]:
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


@cache
def tensors() -> dict[str, Tensor]:
    return load_file(FILE)


def group(prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors().items() if name.startswith(prefix)}


@cache
def load_backbone() -> Backbone:
    backbone = Backbone(read_config({"model_type": "t5", **manifest()["config"]}), name="golden")
    theirs = {name: tensor for name, tensor in group("w.").items() if "side_" not in name}
    renamed = {ours: tensor for name, tensor in theirs.items() if (ours := backbone_name(name))}
    backbone.load_state_dict({"head": renamed["shared"], **renamed})
    return backbone


def load_side() -> SideNetwork:
    """The stored side network."""
    [entry] = manifest()["files"].values()
    settings, vis = entry["settings"], manifest()["vis"]
    visual = VisualConfig(
        features=vis["feat_dim"], images=vis["n_images"], tokens=vis["n_boxes"], positions=ADDED, vocabulary=220
    )
    backbone = load_backbone().config
    side = SideNetwork(SideConfig(reduction=settings["r"], visual=visual), backbone).eval()
    side.load_state_dict(weights(side, "w."))
    return side


def weights(side: SideNetwork, prefix: str) -> dict[str, Tensor]:
    """A tensor for every parameter of the side network, and the frozen positions, under our names."""
    theirs = group(prefix) | {POSITIONS: tensors()["w.shared.weight"][-ADDED:]}
    return {name: theirs[authors_name(name, side.config)] for name in side.state_dict()}


@cache
def inputs() -> dict[str, Tensor]:
    return load_file(FOLDER / "inputs.safetensors")


def mask() -> Tensor:
    return inputs()["input_ids"] != 0


def images() -> Images:
    """One image a row."""
    return Images.of(inputs()["vis_feats"][:, None], inputs()["boxes"][:, None])


def pairs() -> Images:
    """Two images a row."""
    features, boxes = inputs()["nlvr_vis_feats"], inputs()["nlvr_boxes"]
    return Images.of(features.unflatten(1, (2, -1)), boxes.unflatten(1, (2, -1)))


def decoder_ids() -> Tensor:
    labels = inputs()["labels"]
    shifted = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == -100, 0)
