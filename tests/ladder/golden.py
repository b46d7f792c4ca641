"""Loads the golden files of the LST authors' code as our objects."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ladder import Backbone, SideConfig, SideNetwork
from ladder.backbone.families import read_config
from ladder.backbone.families.t5 import backbone_name
from ladder.lst_compat.names import authors_name
from tests.paths import GOLDEN

FOLDER = GOLDEN / "t5"
VARIANTS = {
    "a": "a_r8_full",
    "b": "b_r8_drop_enc13_dec13",
    "b2": "b2_r8_drop_enc123_dec3",
    "c": "c_r8_magnitude_v2",
    "c3": "c3_r4_magnitude_v2",
    "d": "d_r8_fisher_v2",
    "e1": "e1_r4_full",
    "e2": "e2_r8_nobias",
    "e3": "e3_r8_gate_none",
    "e4": "e4_r8_gate_one_network_pruning",
    "e5": "e5_r8_gate_one_merge_last_side_tuning",
    "e6": "e6_r8_residual_after",
}


@dataclass(frozen=True)
class Golden:
    tensors: dict[str, Tensor]
    side: SideNetwork

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """Return a tensor for every parameter of the side network, under our names."""
        return named(self.side.state_dict(), self.group(prefix), self.side.config)


def manifest() -> dict[str, Any]:
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


@cache
def load_backbone() -> Backbone:
    config = manifest()["config"]
    backbone = Backbone(read_config({"model_type": "t5", **config}))
    weights = load_file(FOLDER / "backbone.safetensors")
    renamed = {ours: tensor for name, tensor in weights.items() if (ours := backbone_name(name))}
    backbone.load_state_dict({"head": renamed["shared"], **renamed})
    return backbone


@cache
def inputs() -> dict[str, Tensor]:
    return load_file(FOLDER / "inputs.safetensors")


def load(variant: str) -> Golden:
    """A variant's stored numbers and a side network with its weights."""
    name = VARIANTS[variant] + ".safetensors"
    settings = manifest()["files"][name]["settings"]
    tensors = load_file(FOLDER / name)
    backbone = load_backbone().config
    config = SideConfig(
        reduction=settings["r"],
        encoder_layers=settings["encoder_side_layers"] and tuple(settings["encoder_side_layers"]),
        decoder_layers=settings["decoder_side_layers"] and tuple(settings["decoder_side_layers"]),
        gate=settings["use_gate"],
        gate_temperature=settings["gate_T"],
        mix_after=settings["add_residual_after"],
        merge_last=settings["merge_last"],
        bias=settings["add_bias_sampling"],
        head="text",
    ).resolve(backbone)
    side = SideNetwork(config, backbone)
    golden = Golden(tensors, side.eval())
    side.load_state_dict(golden.weights("w."))
    return golden


def named(names: Iterable[str], theirs: dict[str, Tensor], config: SideConfig) -> dict[str, Tensor]:
    """Return the authors' tensors under our `names`."""
    return {name: theirs[authors_name(name, config)] for name in names}


def teacher_forcing(labels: Tensor) -> Tensor:
    """Return decoder ids for labels padded with -100."""
    shifted = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == -100, 0)
