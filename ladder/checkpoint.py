"""A side network in one safetensors file: its weights, and in the header its format, schema and shape. Never pickle."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from ladder.config import BackboneConfig, SideConfig
from ladder.errors import CheckpointError, SideConfigError
from ladder.side import SideNetwork

HEADER = "sidecast.side_network"
"""The one entry of the file's metadata, as JSON: safetensors writes several in any order, and equal networks shall be
equal bytes."""
SCHEMA = 1
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""What weights may be stored in."""


def save_side(path: str | Path, side: SideNetwork) -> None:
    """Write `side` in float32."""
    header = json.dumps({"schema": SCHEMA, "config": side.config.to_dict()}, sort_keys=True)
    tensors = {name: tensor.detach().float().contiguous().cpu() for name, tensor in side.state_dict().items()}
    save_file(tensors, str(path), metadata={HEADER: header})


def as_served(side: SideNetwork, dtype: torch.dtype) -> SideNetwork:
    """A frozen copy in evaluation mode and `dtype`; a head of its own stays as it is, float32: it says answers."""
    return _settled(deepcopy(side), dtype)


def _settled(side: SideNetwork, dtype: torch.dtype) -> SideNetwork:
    """`as_served` in place."""
    heads = {name: getattr(side, name).state_dict() for name in ("head", "words") if hasattr(side, name)}
    side.to(dtype).eval().requires_grad_(False)
    for name, exact in heads.items():  # float() alone would keep what rounding to `dtype` left
        getattr(side, name).float().load_state_dict(exact)
    return side


def load_side(
    path: str | Path,
    backbone: BackboneConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SideNetwork:
    """Read a side network for a backbone of that shape, in evaluation mode.

    Raises:
        CheckpointError: not ours, a newer schema, damaged, weights missing or unknown, a wrong shape, or not finite.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
            config = _read_config(path, opened.metadata() or {})
            found = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
            side = _checked(path, found, config, backbone)
            tensors = {name: _finite(path, name, opened.get_tensor(name)) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file: {error}") from None
    side.load_state_dict(tensors, assign=True)
    return _settled(side, dtype).to(device)


def _finite(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """In float32, where what was large but finite may be finite no longer."""
    if tensor.dtype not in DTYPES or not torch.isfinite(weights := tensor.float()).all():
        raise CheckpointError(f"{path.name}: {name} holds values that are not finite numbers")
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
    """No random starts of linear layers: what is loaded replaces them, and they are slow even without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func in (nn.init.kaiming_uniform_, nn.init.uniform_) else func(*args, **kwargs)


def _checked(
    path: Path, found: dict[str, tuple[int, ...]], config: SideConfig, backbone: BackboneConfig
) -> SideNetwork:
    """Compare the file's header with what its settings call for, before memory is taken for either; that, still without
    memory."""
    try:
        with torch.device("meta"), _Undrawn():
            side = SideNetwork(config, backbone)
        needed = {name: tuple(tensor.shape) for name, tensor in side.state_dict().items()}
    except (SideConfigError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path.name} does not fit this backbone: {error}") from None
    missing, extra = sorted(needed.keys() - found.keys()), sorted(found.keys() - needed.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path.name} does not fit its own settings: lacks {missing[:3]}, has unknown {extra[:3]}"
        )
    for name, shape in found.items():
        if shape != needed[name]:
            raise CheckpointError(f"{path.name}: {name} has shape {shape}, this backbone needs {needed[name]}")
    return side
