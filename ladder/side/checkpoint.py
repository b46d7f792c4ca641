"""A side network in one safetensors file: its weights, and in the header its format, schema and shape. Never pickle."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.overrides import TorchFunctionMode

from ladder.config import BackboneConfig, SideConfig
from ladder.errors import CheckpointError, SideConfigError
from ladder.side.network import SideNetwork

M = TypeVar("M", bound=nn.Module)

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
    weights = {name: tensor.to(_kept(name, dtype), copy=True) for name, tensor in side.state_dict().items()}
    return _filled(side, weights)


def _kept(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a weight of that name is kept in, in a side network of `dtype`."""
    return torch.float32 if name.startswith(("head.", "words.")) else dtype


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
            config = _read_config(path, opened.metadata() or {})
            found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            blueprint = _checked(path, found, config, backbone)
            tensors = _finite(path, {name: opened.get_tensor(name) for name in found})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file: {error}") from None
    weights = {name: tensor.to(device=device, dtype=_kept(name, dtype)) for name, tensor in tensors.items()}
    return _filled(blueprint, weights)


def _finite(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In float32, where what was large but finite may be finite no longer."""
    weights = {name: tensor.float() for name, tensor in tensors.items() if tensor.dtype in DTYPES}
    wrong = tensors.keys() - weights.keys()
    if not wrong and not math.isfinite(get_total_norm(weights.values(), math.inf)):  # the largest of all, in one call
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
    """No random starts of linear layers: what is loaded replaces them, and they are slow even without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func in (nn.init.kaiming_uniform_, nn.init.uniform_) else func(*args, **kwargs)


@lru_cache(maxsize=16)
def _blueprint(config: SideConfig, backbone: BackboneConfig) -> tuple[SideNetwork, dict[str, tuple[int, ...]]]:
    """A side network of that shape, without memory, and its weights' shapes. Kept, since many of one shape are loaded,
    and making one takes longer than reading its weights."""
    with torch.device("meta"), _Undrawn():
        side = SideNetwork(config, backbone)
    return side, {name: tuple(tensor.shape) for name, tensor in side.state_dict().items()}


def _filled(module: M, weights: Mapping[str, Tensor], prefix: str = "") -> M:
    """A module like `module` with these weights, by name, instead of its own: frozen, in evaluation mode.

    It is what `deepcopy`, `load_state_dict` and `requires_grad_` make together, in a twentieth of the time, for modules
    that stand in one place each and whose buffers are all saved.
    """
    filled, was = type(module).__new__(type(module)), vars(module)
    now = vars(filled)
    now.update({name: value.copy() if isinstance(value, dict) else value for name, value in was.items()})
    for name, old in was["_parameters"].items():
        now["_parameters"][name] = None if old is None else nn.Parameter(weights[prefix + name], requires_grad=False)
    for name in was["_buffers"]:
        now["_buffers"][name] = weights[prefix + name]
    for name, child in module.named_children():
        now["_modules"][name] = _filled(child, weights, f"{prefix}{name}.")
    now["training"] = False
    return filled


def _checked(
    path: Path, found: dict[str, tuple[int, ...]], config: SideConfig, backbone: BackboneConfig
) -> SideNetwork:
    """What the file's settings call for, without memory, once its header was compared with that."""
    try:
        side, needed = _blueprint(config, backbone)
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
