"""The families of vision encoders that transformers computes: CLIP, SigLIP, DINOv2, ViT and ResNet.

Each is loaded by its own class of transformers; here is what differs between them: the settings that shape the
features, the names of weights that do not, and the preprocessing that a folder without settings of its own gets.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vision.errors import EncoderError
from vision.preprocessing import CLIP_MEAN, CLIP_STD, HALF

BICUBIC = int(Image.Resampling.BICUBIC)
BILINEAR = int(Image.Resampling.BILINEAR)
_TRANSFORMER = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "num_channels",
    "hidden_act",
    "layer_norm_eps",
)
_OF_A_CROP = {"size": {"shortest_edge": 224}, "square": False, "crop_size": 224, "do_center_crop": True}
_UNUSED = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "classifier.",
    "pooler.",
    "head.",
    "embeddings.mask_token",
)
"""Weights of text towers, poolers and classifiers: the grid does not depend on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family."""

    name: str
    model: str
    """Class of transformers that computes the vision tower."""
    prefix: str
    """What names of weights begin with, in files of a model that is more than the tower."""
    settings: tuple[str, ...]
    """Fields of the configuration that shape the features."""
    preprocessing: Mapping[str, Any]
    class_tokens: int = 0
    """Tokens before the grid's."""
    is_convolutional: bool = False
    asks_to_interpolate: bool = False
    """The model takes another size than its own only with `interpolate_pos_encoding`."""


_CLIP = Family(
    name="clip",
    model="CLIPVisionModel",
    prefix="vision_model.",
    settings=(*_TRANSFORMER, "intermediate_size"),
    preprocessing={**_OF_A_CROP, "resample": BICUBIC, "image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    class_tokens=1,
    asks_to_interpolate=True,
)
_SIGLIP = Family(
    name="siglip",
    model="SiglipVisionModel",
    prefix="vision_model.",
    settings=(*_TRANSFORMER, "intermediate_size"),
    preprocessing={"size": 224, "resample": BICUBIC, "image_mean": HALF, "image_std": HALF},
    asks_to_interpolate=True,
)
FAMILIES: Mapping[str, Family] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": Family(
        name="dinov2",
        model="Dinov2Model",
        prefix="dinov2.",
        settings=(*_TRANSFORMER, "mlp_ratio", "qkv_bias", "use_swiglu_ffn"),
        preprocessing={**_OF_A_CROP, "resample": BICUBIC, "image_mean": CLIP_MEAN, "image_std": CLIP_STD},
        class_tokens=1,
    ),
    "vit": Family(
        name="vit",
        model="ViTModel",
        prefix="vit.",
        settings=(*_TRANSFORMER, "intermediate_size", "qkv_bias"),
        preprocessing={"size": 224, "resample": BILINEAR, "image_mean": HALF, "image_std": HALF},
        class_tokens=1,
        asks_to_interpolate=True,
    ),
    "resnet": Family(
        name="resnet",
        model="ResNetModel",
        prefix="resnet.",
        settings=(
            "num_channels",
            "embedding_size",
            "hidden_sizes",
            "depths",
            "layer_type",
            "hidden_act",
            "downsample_in_first_stage",
            "downsample_in_bottleneck",
        ),
        preprocessing={
            "size": {"shortest_edge": 384},
            "square": False,
            "crop_pct": 224 / 256,
            "resample": BICUBIC,
            "image_mean": HALF,
            "image_std": HALF,
        },
        is_convolutional=True,
    ),
}
"""By `model_type` in config.json."""


class TransformersTower(nn.Module):
    """A vision tower of transformers, computed up to one of its layers.

    Args:
        model: of the family's class.
        layer: index into transformers' `hidden_states`; None: `last_hidden_state`, which most families normalise.
    """

    def __init__(self, family: Family, model: nn.Module, layer: int | None) -> None:
        super().__init__()
        self._family = family
        self.model = model
        # ResNet's stages, all others' blocks: the one list of modules in the model
        blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
        if layer is not None and not -len(blocks) <= layer <= len(blocks):
            raise EncoderError(f"this {family.name} has the hidden layers 0 to {len(blocks)}, got layer {layer}")
        self.layer = layer if layer is None or layer >= 0 else len(blocks) + 1 + layer
        if self.layer is not None:
            del blocks[max(1, self.layer) :]
        config: Any = model.config
        self.stride = 1 if family.is_convolutional else int(config.patch_size)
        self._own_size = None if family.is_convolutional else int(config.image_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the grid: (rows, 3, height, width) to (rows, width, rows of tokens, columns of tokens)."""
        options: dict[str, Any] = {"output_hidden_states": self.layer is not None}
        height, width = pixels.shape[2:]
        if self._family.asks_to_interpolate and (height, width) != (self._own_size, self._own_size):
            options["interpolate_pos_encoding"] = True
        outputs = self.model(pixels, **options)
        states = outputs.last_hidden_state if self.layer is None else outputs.hidden_states[self.layer]
        if self._family.is_convolutional:
            return states
        tokens = states[:, self._family.class_tokens :]
        return tokens.transpose(1, 2).unflatten(2, (height // self.stride, width // self.stride))


def load_tower(family: Family, folder: Path, layer: int | None, dtype: torch.dtype) -> TransformersTower:
    """Load a family's tower from a Hugging Face folder with safetensors.

    Raises:
        EncoderError: weights that are missing or do not fit the configuration, or no such layer.
    """
    import transformers

    model_class = getattr(transformers, family.model)
    options = {"add_pooling_layer": False} if family.name == "vit" else {}
    with _quiet_transformers():
        try:
            model, report = model_class.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=dtype, output_loading_info=True, **options
            )
        except Exception as error:  # of many kinds, some with a report of many lines
            raise EncoderError(
                f"{folder} does not load as {family.name}: {str(error).strip().splitlines()[0]}"
            ) from None
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(_UNUSED))
    if missing:
        raise EncoderError(
            f"{folder} lacks {len(missing)} weights that its config.json asks for, {missing[0]} the first"
        )
    return TransformersTower(family, model, layer)


def used_name(family: Family, name: str) -> str | None:
    """Return a weight's name within the tower, for a name in a file; None if the grid does not depend on it."""
    if name.endswith("num_batches_tracked") or name.startswith(_UNUSED):
        return None
    inner = name.removeprefix(family.prefix)
    return None if inner.startswith(_UNUSED) else inner


def identity(family: Family, config: Mapping[str, Any]) -> str:
    """Return the settings that shape the features as text, for fingerprints, with transformers' defaults filled in."""
    import transformers

    config_class = getattr(transformers, family.model).config_class
    values = config.get("vision_config", config)
    filled = config_class(**{name: value for name, value in values.items() if name != "model_type"})
    return f"{family.name}({', '.join(f'{name}={getattr(filled, name)!r}' for name in family.settings)})"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the progress bar, and the report of weights that the tower does not use."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    had_bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bar:
            logging.enable_progress_bar()
