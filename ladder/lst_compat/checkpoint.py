"""Import a side network that the LST authors' code trained: its file, the backbone's part in it, its weights.

`ladder.lst_compat.settings` infers its settings; `ladder.lst_compat.names` maps its names.
"""

import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ladder.backbone.families.t5 import backbone_name
from ladder.backbone.model import Backbone
from ladder.config import BackboneConfig, SideConfig
from ladder.errors import CheckpointError
from ladder.lst_compat.names import POSITIONS, VISUAL, authors_name, bias_owners, gate_layers
from ladder.lst_compat.settings import STACKS, Claims, infer_settings
from ladder.side.network import SideNetwork

WRAPPERS = ("state_dict", "model")
"""Keys under which training loops store the model's state dict next to the optimizer's."""
PREFIXES = ("module.", "w.")
"""Prefixes of names: DataParallel's, and that of files which hold more than weights."""
ADDED = 100
"""Tokens that the authors' code adds to the vocabulary for images."""
OPEN = 120.0
SHUT = -120.0
"""Logits over temperature whose sigmoid in float32 is exactly 1 and 0."""
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
"""Present in old T5 checkpoints; no code reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A side network from the authors' checkpoint."""

    side: SideNetwork
    compared: int
    """Number of backbone tensors in the checkpoint; all equal to the backbone's."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, a sentence each."""


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors or torch file, under the authors' names.

    Torch files load without running code (weights_only); {"state_dict": ...} and {"model": ...} are opened, "module."
    and "w." in front of names dropped. Where names begin with "w.", others (stored activations) are ignored.

    Raises:
        CheckpointError: no such file, damaged, or more than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder; name the file in it" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}")
    named = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    if any(name.startswith("w.") for name in named):
        named = {name: tensor for name, tensor in named.items() if name.startswith("w.")}
    plain: dict[str, Tensor] = {}
    for name, tensor in named.items():
        bare = _bare(name)
        if bare in plain:
            raise CheckpointError(f"{path.name} has {bare} twice, with and without a prefix")
        plain[bare] = tensor
    return plain


def import_side(tensors: Mapping[str, Tensor], backbone: Backbone, claims: Claims | None = None) -> Imported:
    """Make a side network from the authors' tensors, in evaluation mode, in float32.

    Raises:
        CheckpointError: the file contradicts the claims, belongs to another backbone, lacks or has too many tensors, or
            a shape or value cannot be. The message names the tensor as the authors do.
        SideConfigError: layers or widths that this backbone does not have.
    """
    if backbone.config.model_type != "t5":
        raise CheckpointError(f"their side networks read a T5, and {backbone.name} is a {backbone.config.model_type}")
    claims = claims or Claims()
    theirs, rest = _split(tensors, backbone)
    vocabulary = 0
    if any(name.startswith(VISUAL) for name in theirs):
        shared = _vocabulary(rest)
        vocabulary = len(shared)
        theirs[POSITIONS] = shared[-max(ADDED, vocabulary - backbone.config.vocab_size) :]
    compared = _compare(rest, backbone, added=POSITIONS in theirs)
    config = infer_settings(theirs, backbone.config, claims, vocabulary)
    ours = _rename(theirs, config, backbone.config)
    notes = _drop_unread_biases(theirs, config, ours)
    if config.visual is not None and claims.visual_tokens is None:
        notes.append(
            f"images have {config.visual.tokens} tokens, as in the paper, since no tensor tells (their n_boxes with "
            "downsample): say so if it was otherwise"
        )
    side = SideNetwork(config, backbone.config)
    side.load_state_dict(side.state_dict() | ours)
    return Imported(side=side.eval(), compared=compared, notes=tuple(notes))


def _is_safetensors(path: Path) -> bool:
    """By its name, or by a header of JSON after eight bytes: torch's own files begin otherwise."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        why = "it is no torch file of tensors alone, and what else is in it is not run; save the state dict"
        raise CheckpointError(f"{path} does not load: {why}") from None
    except Exception as error:  # torch.load raises errors of many kinds
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is not a whole torch file: {why}") from None
    while isinstance(loaded, Mapping) and (wrapper := _wrapper(loaded)):
        loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise CheckpointError(f"{path} holds no state dict: names and their tensors are needed")
    other = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(f"{path}: {other[0]!r} is no tensor; save the model's state dict alone")
    odd = [name for name, value in loaded.items() if not _is_plain(value)]
    if odd:
        raise CheckpointError(f"{path}: {odd[0]!r} is sparse, quantised or lacks values; save plain tensors")
    return dict(loaded)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is dense and all its values are in the file: a few bytes could declare any shape."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def _wrapper(loaded: Mapping[Any, Any]) -> str | None:
    return next((name for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)


def _bare(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _split(tensors: Mapping[str, Tensor], backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The side network's tensors under the authors' names, and the backbone's under ours."""
    known = {name for name, _ in backbone.named_parameters()}
    side: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        ours = None if "side_" in name else backbone_name(name)
        if "side_" in name or (name.startswith(VISUAL) and name != POSITIONS):
            side[name] = tensor
        elif ours in known:
            rest[str(ours)] = tensor
        elif name.endswith("embed_tokens.weight") or name == POSITIONS:
            rest[f"shared ({name})"] = tensor
        elif name != _UNUSED:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"the checkpoint has {_few(unknown)}, which is no part of a T5 with a side network; leave such tensors out"
        )
    if not any("side_" in name for name in side):
        raise CheckpointError("the checkpoint has no side network: no name in it has 'side_'")
    return side, rest


def _vocabulary(rest: Mapping[str, Tensor]) -> Tensor:
    """The checkpoint's token embeddings, which for CLIP-T5 have rows for positions in an image at their end."""
    copies = {name: tensor for name, tensor in rest.items() if name.split(" ")[0] in ("shared", "head")}
    shared = next(iter(copies.values()), None)
    if shared is None or shared.ndim != 2:
        raise CheckpointError(
            "the checkpoint reads images and lacks shared.weight, whose last rows stand for positions in an image"
        )
    for name, copy in copies.items():
        if not torch.equal(copy, shared):
            raise CheckpointError(f"the checkpoint's {name} is not its {next(iter(copies))}: both are one table there")
    return shared


def _compare(rest: Mapping[str, Tensor], backbone: Backbone, *, added: bool) -> int:
    """Check that the checkpoint's backbone tensors equal the backbone's; return their number.

    Args:
        added: the checkpoint's vocabulary may have further rows.
    """
    weights = dict(backbone.named_parameters())
    for name, tensor in rest.items():
        ours = weights[name.split(" ")[0]].detach().cpu()
        embedding = name.split(" ")[0] in ("shared", "head")
        if added and embedding and tensor.ndim == 2:
            tensor = tensor[: len(ours)]  # the side network keeps the others
        if embedding and tensor.ndim == 2 and tensor.shape[1] == ours.shape[1] and len(tensor) > len(ours):
            raise CheckpointError(
                f"the checkpoint's {name} has {len(tensor)} rows, and this backbone's has {len(ours)}: give the one "
                "with the tokens that were added"
            )
        ours = ours[: len(tensor)] if embedding and tensor.ndim == 2 else ours  # theirs is cut to the tokenizer's size
        if tensor.shape != ours.shape or not _same(ours, tensor):
            raise CheckpointError(
                f"the checkpoint belongs to another backbone: its {name} is not {backbone.name}'s; give the one it was "
                "trained on"
            )
    return len(rest)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are equal, or one is the other in a coarser dtype."""
    ours = ours.float()
    theirs = theirs.float()
    if torch.equal(ours, theirs):
        return True
    return any(
        torch.equal(fine.to(dtype).float(), coarse)
        for dtype in (torch.bfloat16, torch.float16)
        for fine, coarse in ((ours, theirs), (theirs, ours))
    )


def _rename(theirs: Mapping[str, Tensor], config: SideConfig, backbone: BackboneConfig) -> dict[str, Tensor]:
    """Rename to our names and check every shape and value; convert a fixed gate's number to a logit."""
    owners = {stack: next(iter(bias_owners(theirs, stack)), None) for stack in STACKS}
    with torch.device("meta"):
        needed = {name: tuple(tensor.shape) for name, tensor in SideNetwork(config, backbone).state_dict().items()}
    names = {ours: authors_name(ours, config, owners.get(ours.partition(".")[0])) for ours in needed}
    if config.gate == "fixed" and not _gate_names(theirs, "gate"):
        names = {ours: name for ours, name in names.items() if not ours.endswith(".gate_logit")}
    missing = sorted(set(names.values()) - theirs.keys())
    extra = sorted(theirs.keys() - set(names.values()) - _unread_gates(theirs, config, backbone))
    if missing or extra:
        parts = (f"it lacks {_few(missing)}" if missing else "", f"it has {_few(extra)} besides" if extra else "")
        why = " and ".join(part for part in parts if part)
        raise CheckpointError(f"the checkpoint is not that of one whole side network: {why}")
    ours = {ours: _checked(name, theirs[name], needed[ours]) for ours, name in names.items()}
    if config.gate == "fixed":
        for name in (name for name in ours if name.endswith(".gate_logit")):
            ours[name] = _logit(names[name], ours[name], config.gate_temperature)
    return ours


def _gate_names(theirs: Mapping[str, Tensor], what: str) -> set[str]:
    return {name for stack in STACKS for name in gate_layers(theirs, stack, what).values()}


def _unread_gates(theirs: Mapping[str, Tensor], config: SideConfig, backbone: BackboneConfig) -> set[str]:
    """Gates in the file that have no effect: those of dropped layers, and those that are always one."""
    counts = {"encoder": backbone.num_layers, "decoder": backbone.num_decoder_layers}
    kept = {"encoder": config.encoder_layers or (), "decoder": config.decoder_layers or ()}
    return {
        name
        for stack in STACKS
        for what in ("gate_params", "gate")
        for layer, name in gate_layers(theirs, stack, what).items()
        if layer < counts[stack] and (layer not in kept[stack] or (what, config.gate) == ("gate", "one"))
    }


def _checked(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"the checkpoint's {name} has shape {tuple(tensor.shape)}, and {shape} is needed")
    if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise CheckpointError(f"the checkpoint's {name} holds values that are not finite numbers")
    return tensor.float()


def _logit(name: str, gate: Tensor, temperature: float) -> Tensor:
    """The logit whose sigmoid, after division by the temperature, is `gate` (1,)."""
    value = float(gate)
    if not 0 <= value <= 1:
        raise CheckpointError(f"the checkpoint's {name} is {value:g}, and a gate is within 0 and 1")
    over = OPEN if value == 1 else SHUT if value == 0 else math.log(value / (1 - value))
    return torch.full_like(gate, over * temperature)


def _drop_unread_biases(theirs: Mapping[str, Tensor], config: SideConfig, ours: dict[str, Tensor]) -> list[str]:
    """Zero the relative biases that the authors' code never read; return a sentence about each.

    In their code the layer that runs first computes the bias for all, and only the layer listed first has a table. If
    layers are listed in another order than they run, the first to run has no table, and every layer gets zeros.
    """
    notes: list[str] = []
    for stack, layers in zip(STACKS, (config.encoder_layers, config.decoder_layers), strict=True):
        owner = next(iter(bias_owners(theirs, stack)), None)
        first = min(layers or (), default=None)
        reads_owner = stack == "encoder" and config.visual is not None  # CLIP-T5's encoder looks its table up itself
        if owner != first and not reads_owner:
            name = f"{stack}.relative_bias.weight"
            ours[name] = torch.zeros_like(ours[name])
            notes.append(
                f"the {stack}'s relative bias is zero: layer {owner} holds the table, but layer {first} runs first and "
                "has none, so the authors' code never read it"
            )
    return notes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
