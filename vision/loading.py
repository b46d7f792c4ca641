"""Load a vision encoder from a folder, and name what shapes its features by a fingerprint."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vision.efficientnet import LAYERS, EfficientNetLite
from vision.encoder import VisionEncoder
from vision.errors import EncoderError
from vision.families import BICUBIC, FAMILIES, identity, load_tower, used_name
from vision.preprocessing import read_preprocessing
from vision.timm_tower import load_timm, read_timm_preprocessing

EFFICIENTNET_LITE = "efficientnet-lite"
"""`model_type` of the one family that is computed here, not by transformers."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRID_LAYOUT = "tokens by row from the top left, no class token"
_LITE_PREPROCESSING = {"resample": BICUBIC, "image_mean": (127 / 255,) * 3, "image_std": (128 / 255,) * 3}


def load_encoder(
    folder: str | Path,
    *,
    layer: int | None = None,
    size: int | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> VisionEncoder:
    """Load a frozen vision encoder.

    Args:
        folder: a Hugging Face folder of a CLIP, SigLIP, DINOv2, ViT or ResNet: config.json, *.safetensors and, where
            its publisher has one, preprocessor_config.json; of an EfficientNet-Lite (`vision.efficientnet`); or of
            timm, where it is installed (`vision.timm_tower`).
        layer: the hidden layer that is the features, counted as transformers counts `hidden_states`: 0 is the
            embeddings (timm has no 0), n the output of block n (ResNet, EfficientNet: stage n), -1 the last. Later
            layers are not computed. None: the model's own last state, normalised where the family normalises it; of an
            EfficientNet-Lite, the "layer" of its config.json where it has one.
        size: height and width of the input, instead of the folder's; positions are interpolated.
        dtype: of the computation, float32 or bfloat16. The features are float32.

    Raises:
        EncoderError: no such folder, a family that is not here, or weights that are missing or damaged.
    """
    path = Path(folder).expanduser()
    if dtype not in DTYPES:
        raise EncoderError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    config = _read_json(path / "config.json")
    kind = config.get("model_type")
    settings = _read_json(path / "preprocessor_config.json") if (path / "preprocessor_config.json").exists() else {}
    if kind == EFFICIENTNET_LITE:
        tower, text, weights = _load_lite(path, config, layer)
        preprocessing = read_preprocessing(settings, {**_LITE_PREPROCESSING, "size": config["image_size"]})
    elif kind is None and "architecture" in config:
        weights = _read_weights(path, lambda name: name)
        tower, text, weights = load_timm(path, config, weights, layer, resizes=size is not None)
        preprocessing = read_timm_preprocessing(config)
    elif family := FAMILIES.get(str(kind)):
        weights = _read_weights(path, lambda name: used_name(family, name))
        tower = load_tower(family, path, layer, DTYPES[dtype])
        text = f"{identity(family, config)}|layer {tower.layer}"
        preprocessing = read_preprocessing(settings, family.preprocessing)
    else:
        known = ", ".join((*FAMILIES, EFFICIENTNET_LITE, "those of timm"))
        raise EncoderError(f"{path} has model_type {kind!r}; the encoders here are {known}")
    if size is not None:
        preprocessing = preprocessing.resized(size)
    return VisionEncoder(
        tower.to(device=device, dtype=DTYPES[dtype]),
        preprocessing,
        name=path.name,
        fingerprint=fingerprint(f"{text}|{preprocessing}", weights),
    )


def count_weights(folder: str | Path) -> int:
    """Count the numbers in an encoder's weights by the files' headers; a text tower or classifier does not count.

    Raises:
        EncoderError: as `load_encoder`, of the folder and its config.json.
    """
    path = Path(folder).expanduser()
    family = FAMILIES.get(str(_read_json(path / "config.json").get("model_type")))
    count = 0
    for file in _weight_files(path):
        with _opened(file) as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                if family is None or used_name(family, name) is not None:
                    count += math.prod(weights.get_slice(name).get_shape())
    return count


def fingerprint(settings: str, weights: Mapping[str, Tensor]) -> str:
    """Identify weights and settings, independent of the dtype of computation: "sha256:" and 64 hex digits.

    Made as the text backbone's fingerprint is: of the settings as text, then of each weight's name, dtype, shape and
    bytes, in the order of names.
    """
    digest = hashlib.sha256(f"{settings}|{GRID_LAYOUT}".encode())
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def _load_lite(path: Path, config: Mapping[str, Any], layer: int | None) -> tuple[nn.Module, str, dict[str, Tensor]]:
    wanted = config.get("layer", LAYERS) if layer is None else layer
    if type(wanted) is not int or not -LAYERS <= wanted <= LAYERS:
        source = f"{path}/config.json has" if layer is None else "got"
        raise EncoderError(f"an EfficientNet-Lite has the hidden layers 0 to {LAYERS}, {source} layer {wanted!r}")
    last = wanted % (LAYERS + 1)
    try:
        shape = {name: float(config[name]) for name in ("width", "depth")}
        int(config["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"{path}/config.json has no usable {error}; make the folder again") from None
    weights = _read_weights(path, lambda name: name)
    with torch.device("meta"):
        tower = EfficientNetLite(**shape, layer=last)
    names = {name for name in tower.state_dict() if not name.endswith("num_batches_tracked")}
    if missing := sorted(names - weights.keys()):
        raise EncoderError(f"{path} lacks {len(missing)} weights that its config.json asks for, {missing[0]} the first")
    tower.to_empty(device="cpu")
    try:
        tower.load_state_dict({name: weights[name] for name in names}, strict=False)
    except RuntimeError as error:
        raise EncoderError(f"{path}: {str(error).splitlines()[-1].strip()}") from None
    tower.fold_norms()
    tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload] - depthwise convolutions on a CPU: faster
    return tower, f"{EFFICIENTNET_LITE}({shape})|layer {last}", weights


def _read_weights(path: Path, names: Any) -> dict[str, Tensor]:
    """Read every weight that has a name by `names`, in the dtype of the file."""
    weights: dict[str, Tensor] = {}
    for file in _weight_files(path):
        with _opened(file) as opened:
            for theirs in opened.keys():  # noqa: SIM118 - not a dict
                if (ours := names(theirs)) is not None:
                    weights[ours] = opened.get_tensor(theirs)
    return weights


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise EncoderError(f"{path} has no *.safetensors; other files of weights are not read, so convert it")
    return files


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{file} is not a whole safetensors file: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    if path.name == "config.json" and not path.is_file():
        raise EncoderError(f"{path.parent} has no config.json; give the folder of a vision encoder")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} does not read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise EncoderError(f"{path} must hold a JSON object")
    return value
