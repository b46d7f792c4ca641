"""Vision encoders of the library timm, an optional extra: timm needs torchvision, which nothing else here does.

A folder is as timm puts it on a hub: config.json with `architecture` and `pretrained_cfg`, and *.safetensors with the
names of timm's own modules.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vision.errors import EncoderError
from vision.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

_CROP_PCT = 0.875
"""timm's own where a configuration has none."""


class TimmTower(nn.Module):
    """A vision tower of timm, computed up to one of its layers.

    Args:
        model: with `forward_intermediates`.
        layer: 1 to n, counted as the entries of timm's `feature_info` from 1: blocks of a ViT, stages of others;
            negative from the end. None: the last, normalised where the model normalises it.
    """

    def __init__(self, model: Any, layer: int | None) -> None:
        super().__init__()
        count = len(model.feature_info)
        self._normalises = layer is None
        self.layer = count if layer is None else layer if layer >= 0 else count + 1 + layer
        if not 1 <= self.layer <= count:
            raise EncoderError(f"this encoder of timm has the layers 1 to {count}, got layer {layer}")
        model.prune_intermediate_layers([self.layer - 1], prune_norm=not self._normalises, prune_head=True)
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the grid: (rows, 3, height, width) to (rows, width, rows of tokens, columns of tokens)."""
        [grid] = self.model.forward_intermediates(
            pixels,
            indices=[self.layer - 1],
            norm=self._normalises,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return grid


def load_timm(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], layer: int | None, *, resizes: bool
) -> tuple[TimmTower, str, dict[str, Tensor]]:
    """Load a tower.

    Args:
        config: of the folder's config.json.
        weights: all tensors of its files.
        resizes: the input has another size than the configuration's.

    Returns:
        The tower, the settings that shape its features as text, and its weights.

    Raises:
        EncoderError: timm is missing or does not work, an architecture that it does not know or that gives no grid,
            weights that are missing or do not fit, or no such layer.
    """
    timm = _import_timm(folder)
    name = config["architecture"]
    options = {**config.get("model_args", {}), **{key: config[key] for key in ("global_pool",) if config.get(key)}}
    if not timm.is_model(name):
        raise EncoderError(f"timm {timm.__version__} has no architecture {name!r}, which {folder}/config.json names")
    model = _create(timm, name, options, resizes=resizes)
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
        raise EncoderError(f"timm's {name} gives no grid of features (it has no forward_intermediates)")
    names = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    if missing := sorted(names - weights.keys()):
        asked = f"{len(missing)} weights that its config.json asks for, {missing[0]} the first"
        raise EncoderError(f"{folder} lacks {asked}")
    used = {key: weights[key] for key in names}
    try:
        model.load_state_dict(used, strict=False)
    except RuntimeError as error:
        raise EncoderError(f"{folder}: {str(error).splitlines()[-1].strip()}") from None
    tower = TimmTower(model, layer)
    normalised = ", normalised" if layer is None else ""
    return tower, f"timm({name}, {sorted(options.items())})|layer {tower.layer}{normalised}", used


class TimmPreprocessing(Preprocessing):
    """timm's: where an odd number of pixels is cut off, torchvision rounds half of it to an even number."""

    __slots__ = ()

    @staticmethod
    def _before(spare: int) -> int:
        return round(spare / 2)


def read_timm_preprocessing(config: Mapping[str, Any]) -> TimmPreprocessing:
    """Read timm's settings of preprocessing.

    Raises:
        EncoderError: they do not read, or ask for borders.
    """
    values = {**config, **config.get("pretrained_cfg", {})}
    try:
        height, width = (int(pixels) for pixels in values["input_size"][-2:])
        crop_pct = float(values.get("crop_pct") or _CROP_PCT)
        enlarged = (math.floor(height / crop_pct), math.floor(width / crop_pct))
        resample = Image.Resampling[str(values.get("interpolation", "bicubic")).upper()]
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"timm's config.json has no usable {error}") from None
    mode = values.get("crop_mode") or "center"
    if mode not in {"center", "squash"} or (mode == "center" and height != width):
        raise EncoderError(f"timm's config.json crops {height} x {width} pixels by {mode!r}, which is not supported")
    return TimmPreprocessing(
        shortest=enlarged[0] if mode == "center" else None,
        exact=None if mode == "center" else enlarged,
        crop=(height, width),
        resample=int(resample),
        mean=tuple(values.get("mean", IMAGENET_MEAN)),
        std=tuple(values.get("std", IMAGENET_STD)),
    )


def _import_timm(folder: Path) -> Any:
    try:
        import timm  # pyright: ignore[reportMissingImports] - an extra that no other extra holds
    except ImportError as error:
        if error.name in {"timm", "torchvision"}:
            raise EncoderError(f"{folder} is an encoder of timm: pip install 'sidecast[timm]'") from None
        raise EncoderError(f"timm does not import: {error}") from None
    except RuntimeError as error:  # a torchvision for another torch lacks its operators
        needs = f"install the torchvision of torch {torch.__version__}"
        raise EncoderError(f"timm does not import: {error}; {needs}") from None
    return timm


def _create(timm: Any, name: str, options: Mapping[str, Any], *, resizes: bool) -> Any:
    """Make the model, with random weights; of a ViT whose input is resized, with positions that are interpolated."""
    if resizes:
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **options, dynamic_img_size=True)
        except TypeError:  # most other models take any size
            pass
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (TypeError, RuntimeError) as error:
        raise EncoderError(f"timm does not make {name} with {dict(options)}: {error}") from None
