"""Load a frozen backbone from a Hugging Face folder or hub id, and name its weights by a fingerprint."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ladder.backbone.families import family_of, read_config
from ladder.backbone.model import Backbone
from ladder.backbone.quantize import check_method, quantize_backbone
from ladder.config import BackboneConfig
from ladder.errors import BackboneError
from ladder.heaps import keep_heaps

TAPS_LAYOUT = "embeddings, then each block's raw output"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""No float16: T5 is known to overflow it."""
BFLOAT16_CAPABILITY = (8, 0)
"""Lowest compute capability of a GPU with bfloat16 arithmetic (Ampere)."""
COPY = "copy of shared"
"""Name of a stack's copy of the embeddings while weights are read."""
_FILES = ["*.json", "*.safetensors", "*.model", "merges.txt"]
_TORCH_FILES = "pytorch_model*.bin"


def load_backbone(
    source: str | Path, *, device: str | torch.device = "cpu", dtype: str = "auto", quantize: str = "none"
) -> Backbone:
    """Load a backbone of any of the `ladder.backbone.families`, frozen, in evaluation mode.

    On a CPU, weights that the file stores in the dtype of computation are not copied: the file is mapped into memory,
    and all processes of a machine share it. To change such a file, replace it; do not write into it. From then on the
    process keeps memory that it frees, for the next pass (`ladder.heaps.keep_heaps`).

    Args:
        source: a Hugging Face folder, or a hub id such as google/flan-t5-small.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: float32 or bfloat16; auto: bfloat16 on a GPU that supports it, else float32.
        quantize: int8, int4 or w8a8 for the blocks' matrices, or none. See `ladder.backbone.quantize`.

    Raises:
        BackboneError: no such folder or id, a kind of model that is not here, or weights that are missing, of the wrong
            shape or damaged.
    """
    check_method(quantize)
    folder = resolve_folder(source)
    config = read_config(read_json(folder / "config.json"))
    weights = _read_weights(folder, config)
    with torch.device("meta"):
        backbone = Backbone(config, name=str(source) if not Path(source).exists() else folder.name)
    backbone.fingerprint = fingerprint(config, weights)
    computed = pick_dtype(dtype, torch.device(device))
    # quantized from the file's values, so that the codes are the same for every dtype
    read_as = computed if quantize == "none" else torch.float32
    backbone.load_state_dict({name: tensor.to(read_as).contiguous() for name, tensor in weights.items()}, assign=True)
    quantize_backbone(backbone, quantize, device)
    keep_heaps()  # after the weights, which stay in memory of their own
    return backbone.to(device=device, dtype=computed)


def resolve_folder(source: str | Path, *, weights: bool = True) -> Path:
    """Return a backbone's folder, downloaded from the hub if `source` is a hub id.

    Args:
        weights: False downloads only config.json.

    Raises:
        BackboneError: neither a folder with a config.json, nor an id in the hub or its cache.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BackboneError(f"{folder} has no config.json; give a Hugging Face folder, or a hub id")
        return folder
    text = str(source)
    if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise BackboneError(
            f"there is no folder {text}; give a Hugging Face folder, or a hub id such as google/flan-t5-small"
        )
    return _from_hub(text, weights)


def _from_hub(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES if weights else ["config.json"]))
        if weights and not any(
            folder.glob("*.safetensors")
        ):  # where these exist, the .bin files repeat the same weights
            folder = Path(snapshot_download(name, allow_patterns=[*_FILES, _TORCH_FILES]))
        return folder
    except LocalEntryNotFoundError:
        raise BackboneError(
            f"{name} is no folder here, is not in the hub's cache, and the hub cannot be reached; give a folder"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BackboneError(f"{name} cannot be had from the hub: {str(error).splitlines()[0]}") from None


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype for a `--dtype` and a device.

    Raises:
        BackboneError: an unknown dtype.
    """
    if dtype == "auto":
        supported = device.type == "cuda" and torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY
        return torch.bfloat16 if supported else torch.float32
    if dtype not in DTYPES:
        raise BackboneError(f"dtype must be one of auto, {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def fingerprint(config: BackboneConfig, weights: dict[str, Tensor]) -> str:
    """Identify weights, shape and taps layout, independent of the dtype of computation: "sha256:" and 64 hex digits."""
    digest = hashlib.sha256(f"{config.identity()}|{TAPS_LAYOUT}".encode())
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of the backbone's folder.

    Raises:
        BackboneError: the file does not read, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} does not read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise BackboneError(f"{path} must hold a JSON object")
    return value


def _read_weights(folder: Path, config: BackboneConfig) -> dict[str, Tensor]:
    """Read every parameter by our name, in the dtype of the file, and check its shape against `config`."""
    weights: dict[str, Tensor] = {}
    for ours, tensor in _tensors(folder, _names(config)):
        weights[ours] = tensor
    if (copy := weights.pop(COPY, None)) is not None:
        weights.setdefault("shared", copy)
    if "shared" in weights:
        weights.setdefault("head", weights["shared"])  # tied
    with torch.device("meta"):
        expected = {name: tuple(parameter.shape) for name, parameter in Backbone(config).named_parameters()}
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        raise BackboneError(
            f"{folder} lacks {len(missing)} weights that its config.json asks for, {missing[0]} the first"
        )
    for name, shape in expected.items():
        actual = tuple(weights[name].shape)
        if actual[1:] != shape[1:] or (actual[0] != shape[0] and name not in ("shared", "head")):
            raise BackboneError(f"{folder}: {name} has shape {actual}, and config.json asks for {shape}")
        if actual[0] < shape[0]:
            raise BackboneError(f"{folder}: {name} has {actual[0]} rows, and config.json asks for {shape[0]}")
        weights[name] = weights[name][: shape[0]]
    return {name: weights[name] for name in expected}


def _names(config: BackboneConfig) -> Callable[[str], str | None]:
    """Return a function from a parameter's name in the file to ours; None for one that is not needed."""
    family = family_of(config)

    def name(theirs: str) -> str | None:
        # a stack's embed_tokens is a copy of the shared embeddings; some files have only the copy
        return family.weight_name(theirs) or (COPY if theirs.endswith("embed_tokens.weight") else None)

    return name


def _tensors(folder: Path, names: Callable[[str], str | None]) -> Iterator[tuple[str, Tensor]]:
    """Yield every needed tensor with our name."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        yield from _torch_tensors(folder, names)
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                for theirs in opened.keys():  # noqa: SIM118 - not a dict
                    if ours := names(theirs):
                        yield ours, opened.get_tensor(theirs)
        except (SafetensorError, OSError) as error:
            if not os.access(path, os.R_OK):
                raise BackboneError(f"{path} may not be read by this user; change its permissions") from None
            raise BackboneError(f"{path} is not a whole safetensors file: {error}") from None


def _torch_tensors(folder: Path, names: Callable[[str], str | None]) -> Iterator[tuple[str, Tensor]]:
    files = sorted(folder.glob(_TORCH_FILES))
    if not files:
        raise BackboneError(f"{folder} has no model.safetensors (nor pytorch_model.bin)")
    for path in files:
        try:
            mapped = is_zipfile(path)  # files from before torch 1.6 are not zip files and cannot be mapped
            loaded = dict(torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
        except Exception as error:  # torch.load raises errors of many kinds
            raise BackboneError(f"{path} does not load: {error}") from None
        yield from ((ours, tensor) for theirs, tensor in loaded.items() if (ours := names(theirs)))
