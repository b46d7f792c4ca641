"""Folders of tiny random vision encoders, as transformers saves them, and transformers' own image processors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TOWER = {**SHAPE, "intermediate_size": 24}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
PROCESSORS: Mapping[str, Any] = {
    "clip": CLIPImageProcessorPil,
    "siglip": SiglipImageProcessorPil,
    "dinov2": BitImageProcessorPil,
    "vit": ViTImageProcessorPil,
    "resnet": ConvNextImageProcessorPil,
}
"""By family. Their files name the class, and have its defaults filled in."""
SIZES: Mapping[str, Mapping[str, Any]] = {
    "clip": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "siglip": {"size": {"height": 32, "width": 32}},
    "dinov2": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
    "vit": {"size": {"height": 32, "width": 32}},
    "resnet": {"size": {"shortest_edge": 32}},
}


def make_model(kind: str) -> Any:
    """A random model, in evaluation mode. clip and siglip have a text tower too, vit and resnet a classifier."""
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=TOWER, projection_dim=4)
        model: Any = transformers.CLIPModel(config)
    elif kind == "clip_vision_model":
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER))
    elif kind == "siglip":
        config = transformers.SiglipConfig(text_config=TEXT, vision_config=TOWER)
        model = transformers.SiglipModel(config)
    elif kind == "siglip_vision_model":
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TOWER))
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, mlp_ratio=2, layerscale_value=0.7))
    elif kind == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**TOWER))
    else:
        shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "bottleneck"}
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**shape))
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not name.endswith("running_var"):
            # transformers starts with zeros and ones in places, which hide mistakes
            tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    return model.eval()


def family_of(kind: str) -> str:
    """The family's name for a `model_type`."""
    return kind.removesuffix("_vision_model")


def save(folder: Path, kind: str, model: Any) -> Path:
    """Write a model's folder, with its processor's settings."""
    model.save_pretrained(folder)
    family = family_of(kind)
    PROCESSORS[family](**SIZES[family]).save_pretrained(folder)
    return folder
