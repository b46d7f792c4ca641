"""A side network in one safetensors file: its weights, and in the header its format, schema and shape. Never pickle."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ladder.config import BackboneConfig, SideConfig
from ladder.errors import CheckpointError, SideConfigError
from ladder.side.network import SideNetwork

M = TypeVar("M", bound=nn.Module)

HEADER = "sidecast.side_network"
"""The one entry of the file's metadata, as JSON: safetensors writes several entries in any order, and equal networks
must be equal bytes."""
SCHEMA = 1
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Dtypes that a file may store weights in."""


def save_side(path: str | Path, side: SideNetwork) -> None:
    """Write the weights of `side` in float32, and its settings."""
    header = json.dumps({"schema": SCHEMA, "config": side.config.to_dict()}, sort_keys=True)
    tensors = {name: tensor.detach().float().contiguous().cpu() for name, tensor in side.state_dict().items()}
    save_file(tensors, str(path), metadata={HEADER: header})


def as_served(side: SideNetwork, dtype: torch.dtype) -> SideNetwork:
    """Return a frozen copy in evaluation mode and `dtype`. A trained head stays in float32, since it computes
    answers."""
    weights = {name: tensor.to(_dtype_of(name, dtype), copy=True) for name, tensor in side.state_dict().items()}
    return _filled(side, weights)


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a weight with this name in a side network of `dtype`."""
    return torch.float32 if name.startswith(("head.", "words.")) else dtype


def load_side(
    path: str | Path,
    backbone: BackboneConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SideNetwork:
    """Read a side network for a backbone of shape `backbone`, in evaluation mode.

    Raises:
        CheckpointError: not a file of `save_side`, a newer schema, damaged, weights missing or unknown, a wrong shape,
            or not finite.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as opened:
            config = _read_config(path, opened.metadata() or {})
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            blueprint = _checked(path, shapes, config, backbone)
            tensors = _finite(path, {name: opened.get_tensor(name) for name in shapes})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file: {error}") from None
    weights = {name: tensor.to(device=device, dtype=_dtype_of(name, dtype)) for name, tensor in tensors.items()}
    return _filled(blueprint, weights)


def _finite(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert to float32 and check that every value is finite; a large float64 may not be after conversion."""
    weights = {name: tensor.float() for name, tensor in tensors.items() if tensor.dtype in DTYPES}
    wrong = tensors.keys() - weights.keys()
    largest = [tensor.abs().amax() for tensor in weights.values() if tensor.numel()]  # not finite where a value is not
    if not wrong and largest and not torch.stack(largest).isfinite().all():
        wrong = {name for name, tensor in weights.items() if not torch.isfinite(tensor).all()}
    if wrong:
        raise CheckpointError(f"{path.name}: {min(wrong)} holds values that are not finite numbers")
    return weights


def _read_config(path: Path, metadata: dict[str, str]) -> SideConfig:
    if HEADER not in metadata:
        raise CheckpointError(f"{path.name} is no side network of ours: its header lacks {HEADER!r}")
    try:
        header = json.loads(metadata[HEADER])
        if header["schema"] != SCHEMA:
            raise CheckpointError(
                f"{path.name} has schema {header['schema']!r} and this Sidecast reads {SCHEMA}: update Sidecast"
            )
        return SideConfig.from_dict(header["config"])
    except CheckpointError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: its side network settings do not read: {error}") from None


class _Undrawn(TorchFunctionMode):
    """Skips the random start of linear layers: loaded weights replace it, and it is slow even on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func in (nn.init.kaiming_uniform_, nn.init.uniform_) else func(*args, **kwargs)


@lru_cache(maxsize=16)
def _blueprint(config: SideConfig, backbone: BackboneConfig) -> tuple[SideNetwork, dict[str, tuple[int, ...]]]:
    """A side network of this shape on the meta device, and its weights' shapes. Cached: many networks of one shape are
    loaded, and constructing one takes longer than reading its weights."""
    with torch.device("meta"), _Undrawn():
        side = SideNetwork(config, backbone)
    return side, {name: tuple(tensor.shape) for name, tensor in side.state_dict().items()}


def _filled(module: M, weights: Mapping[str, Tensor], prefix: str = "") -> M:
    """Return a copy of `module` with these weights, by name; frozen, in evaluation mode.

    Does what `deepcopy`, `load_state_dict` and `requires_grad_` do together, in a twentieth of the time. Works for
    modules that appear only once and whose buffers are all saved.
    """
    filled = type(module).__new__(type(module))
    old = vars(module)
    new = vars(filled)
    new.update({name: value.copy() if isinstance(value, dict) else value for name, value in old.items()})
    for name, parameter in old["_parameters"].items():
        new["_parameters"][name] = (
            None if parameter is None else nn.Parameter(weights[prefix + name], requires_grad=False)
        )
    for name in old["_buffers"]:
        new["_buffers"][name] = weights[prefix + name]
    for name, child in module.named_children():
        new["_modules"][name] = _filled(child, weights, f"{prefix}{name}.")
    new["training"] = False
    return filled


def _checked(
    path: Path, shapes: dict[str, tuple[int, ...]], config: SideConfig, backbone: BackboneConfig
) -> SideNetwork:
    """Return the network of the file's settings, on the meta device, after checking the file's names and shapes."""
    try:
        side, needed = _blueprint(config, backbone)
    except (SideConfigError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path.name} does not fit this backbone: {error}") from None
    missing, extra = sorted(needed.keys() - shapes.keys()), sorted(shapes.keys() - needed.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path.name} does not fit its own settings: lacks {missing[:3]}, has unknown {extra[:3]}"
        )
    for name, shape in shapes.items():
        if shape != needed[name]:
            raise CheckpointError(f"{path.name}: {name} has shape {shape}, this backbone needs {needed[name]}")
    return side
