"""The settings of a side network that the LST authors' code trained, inferred from its checkpoint's tensors.

Settings that no tensor shows (temperature, where the tap is mixed in, which of two gates without weights) are claims of
the user; a claim that the file contradicts is an error.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from torch import Tensor

from ladder.config import BackboneConfig, Gate, GateForm, SideConfig, VisualConfig
from ladder.errors import CheckpointError
from ladder.lst_compat.names import POSITIONS, VISUAL, bias_owners, gate_layers, kept_layers

STACKS = ("encoder", "decoder")
WORDS = frozenset(
    {
        "r",
        "encoder_side_layers",
        "decoder_side_layers",
        "use_gate",
        "gate_T",
        "gate_alpha",
        "add_residual_after",
        "merge_last",
        "add_bias_sampling",
        "side_reduction_factor",
        "task_reduction_factor",
        "n_boxes",
    }
)
"""The authors' names of the settings in `Claims`."""
_CLIP_T5: Mapping[str, Any] = {
    "pos_dim": 4,
    "oneddownsample": False,
    "sparse_sample": False,
    "expand_vis_embedding": False,
    "vis_use_transformer": False,
    "use_vis_order_embedding": True,
    "use_vis_layer_norm": True,
    "individual_vis_layer_norm": True,
    "additional_visual_embedding_layers": 0,
}
"""The authors' settings of CLIP-T5's visual embedding that have one value in all of the paper's runs."""
PAPER_TOKENS = 36
"""Tokens of one image in the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Settings that the user claims about a checkpoint; None: not claimed."""

    reduction: int | None = None
    encoder_layers: tuple[int, ...] | None = None
    """As the authors list them: the first one listed owns the relative bias."""
    decoder_layers: tuple[int, ...] | None = None
    gate: Gate | None = None
    gate_temperature: float | None = None
    gate_start: float | None = None
    """The logit of a "fixed" gate that the file does not hold; for other gates the start of training."""
    mix_after: bool | None = None
    merge_last: bool | None = None
    bias: bool | None = None
    visual_tokens: int | None = None
    """Tokens of one image (their n_boxes with downsample); 0: the grid as it is."""
    visual_features: int | None = None
    """Their feat_dim."""
    visual_images: int | None = None
    """Their n_images."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], backbone: BackboneConfig) -> Self:
        """Read the authors' settings: use_gate, gate_T, encoder_side_layers and so on, as in their config.json.

        Raises:
            CheckpointError: a value of the wrong type, a method that is not LST, or none of their settings.
        """
        for name in ("train_task_adapters", "prefix_tuning"):
            if settings.get(name) not in (None, False):
                raise CheckpointError(f"the settings have {name} {settings[name]!r}: that is more than a side network")
        if not settings.keys() & WORDS:
            raise CheckpointError(f"the settings hold none of {', '.join(sorted(WORDS))}: give the authors' own")
        for name, value in _CLIP_T5.items():
            if settings.get(name, value) not in (None, value):
                raise CheckpointError(f"the settings have {name} {settings[name]!r}: only {value!r} is supported")
        counts = {"encoder": backbone.num_layers, "decoder": backbone.num_decoder_layers}
        return cls(
            reduction=_reduction_setting(settings),
            encoder_layers=_listed(settings, "encoder_side_layers", counts["encoder"]),
            decoder_layers=_listed(settings, "decoder_side_layers", counts["decoder"]),
            gate=_use_gate(settings),
            gate_temperature=_setting(settings, "gate_T", float),
            gate_start=None if _use_gate(settings) == "fixed" else _setting(settings, "gate_alpha", float),
            mix_after=_setting(settings, "add_residual_after", bool),
            merge_last=_setting(settings, "merge_last", bool),
            bias=_setting(settings, "add_bias_sampling", bool),
            visual_tokens=_visual_tokens(settings),
            visual_features=_whole(settings, "feat_dim"),
            visual_images=_whole(settings, "n_images"),
        )

    def join(self, other: Self) -> Self:
        """Combine two sets of claims.

        Raises:
            CheckpointError: they disagree.
        """
        values: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            mine = getattr(self, name)
            theirs = getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                raise CheckpointError(f"{name} is given twice, as {_shown(mine)} and as {_shown(theirs)}; give one")
            values[name] = theirs if mine is None else mine
        return type(self)(**values)


def infer_settings(
    theirs: Mapping[str, Tensor], backbone: BackboneConfig, claims: Claims, vocabulary: int = 0
) -> SideConfig:
    """The resolved settings of the side network whose tensors, under the authors' names, are `theirs`.

    Args:
        vocabulary: rows of the checkpoint's vocabulary, where it reads images.

    Raises:
        CheckpointError: the tensors contradict each other or the claims, or neither shows a setting.
        SideConfigError: layers or widths that this backbone does not have.
    """
    layers = {stack: kept_layers(theirs, stack) for stack in STACKS}
    for stack in STACKS:
        _check_layers(theirs, stack, layers[stack], getattr(claims, f"{stack}_layers"))
    reduction = _reduction(theirs, backbone, claims.reduction)
    bias = any(name.endswith("side_first_downsample.bias") for name in theirs)
    merge_last = "side_gate_params_merge_last" in theirs
    _agree("bias", claims.bias, bias, "add_bias_sampling: biases of its projections")
    _agree("merge_last", claims.merge_last, merge_last, "side_gate_params_merge_last")
    gate, form = _gate(theirs, layers, claims)
    claimed = {
        "gate_temperature": claims.gate_temperature,
        "gate_start": claims.gate_start,
        "mix_after": claims.mix_after,
    }
    return SideConfig(
        reduction=reduction,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        gate=gate,
        gate_form=form,
        merge_last=merge_last,
        bias=bias,
        head="text",
        visual=_visual(theirs, claims, vocabulary),
        **{name: value for name, value in claimed.items() if value is not None},
    ).resolve(backbone)


def _check_layers(
    theirs: Mapping[str, Tensor], stack: str, kept: tuple[int, ...], claimed: tuple[int, ...] | None
) -> None:
    owners = bias_owners(theirs, stack)
    if kept and len(owners) != 1:
        raise CheckpointError(
            f"one {stack}.side_block must hold a relative_attention_bias, and {_numbers(owners) or 'none'} does: the "
            "checkpoint is not whole, or not of the authors' code after July 2022"
        )
    if claimed is None:
        return
    if tuple(sorted(claimed)) != kept:
        raise CheckpointError(f"{stack} layers {_shown(claimed)} are claimed, and the checkpoint has {_shown(kept)}")
    if claimed and claimed[0] != owners[0]:
        raise CheckpointError(
            f"{stack} layer {claimed[0]} is listed first, and the checkpoint's relative bias is layer {owners[0]}'s: "
            "list that one first, as in training"
        )


def _reduction(theirs: Mapping[str, Tensor], backbone: BackboneConfig, claimed: int | None) -> int:
    name = "encoder.side_first_downsample.weight"
    if name not in theirs:
        raise CheckpointError(f"the checkpoint lacks {name}")
    shape = tuple(theirs[name].shape)
    if len(shape) != 2 or shape[1] != backbone.d_model or not 1 <= shape[0] <= backbone.d_model:
        raise CheckpointError(
            f"{name} has shape {shape}, and this backbone's width is {backbone.d_model}: give the one it was trained on"
        )
    fitting = [r for r in range(1, shape[1] + 1) if shape[1] // r == shape[0] and _fits(theirs, backbone, r)]
    if not fitting:
        raise CheckpointError("the side network's widths are not this backbone's (d_model, d_kv, d_ff) over any one r")
    if claimed is not None and claimed not in fitting:
        raise CheckpointError(f"r {claimed} is claimed, and the checkpoint's widths are those of r {fitting[-1]}")
    # several r, rounded down, make one shape; the exact one is the largest
    return fitting[-1] if claimed is None else claimed


def _fits(theirs: Mapping[str, Tensor], backbone: BackboneConfig, reduction: int) -> bool:
    """Whether the rows of a query and of a feed-forward projection, where there is one, are those of r."""
    wanted = {
        "SelfAttention.q.weight": backbone.num_heads * (backbone.d_kv // reduction),
        "wi.weight": backbone.d_ff // reduction,
        "wi_0.weight": backbone.d_ff // reduction,
    }
    found = {ending: next((t for name, t in theirs.items() if name.endswith(ending)), None) for ending in wanted}
    return all(tensor is None or tuple(tensor.shape[:1]) == (wanted[ending],) for ending, tensor in found.items())


def _gate(theirs: Mapping[str, Tensor], layers: Mapping[str, tuple[int, ...]], claims: Claims) -> tuple[Gate, GateForm]:
    learnable = {stack: gate_layers(theirs, stack, "gate_params") for stack in STACKS}
    numbers = {stack: gate_layers(theirs, stack, "gate") for stack in STACKS}
    if any(learnable.values()) and any(numbers.values()):
        raise CheckpointError("the checkpoint has side_gate_params and side_gate_0 ...: two kinds of gates")
    if any(learnable.values()):
        _agree("gate", claims.gate, "learnable", "side_gate_params")
        sizes = {theirs[name].numel() for stack in STACKS for i, name in learnable[stack].items() if i in layers[stack]}
        return "learnable", "channel" if sizes and sizes != {1} else "scalar"
    if any(numbers.values()):
        values = [theirs[name] for stack in STACKS for i, name in numbers[stack].items() if i in layers[stack]]
        found: Gate = "one" if all(bool((value == 1).all()) for value in values) else "fixed"
        if not (found == "one" and claims.gate == "fixed"):  # a schedule that has not begun holds ones too
            _agree("gate", claims.gate, found, "side_gate_0 ...")
        return (claims.gate or found), "scalar"
    if not any(layers.values()):
        return claims.gate or "learnable", "scalar"  # no rung, nothing to gate
    return _claimed_gate(claims), "scalar"


def _claimed_gate(claims: Claims) -> Gate:
    if claims.gate is None:
        raise CheckpointError(
            "the checkpoint holds no gates, so it does not tell which of two it had: give --gate none (side + tap), "
            "--gate one (no taps), or --gate fixed with --gate-start"
        )
    if claims.gate == "learnable":
        raise CheckpointError("gate learnable is claimed, and the checkpoint has no side_gate_params")
    if claims.gate == "fixed" and claims.gate_start is None:
        raise CheckpointError("a fixed gate that the checkpoint does not hold needs --gate-start, its logit")
    return claims.gate


def _visual(theirs: Mapping[str, Tensor], claims: Claims, vocabulary: int) -> VisualConfig | None:
    if POSITIONS not in theirs:
        if claims.visual_tokens is not None:
            raise CheckpointError(f"images are claimed, and the checkpoint has no {VISUAL[:-1]}")
        return None
    shapes = {}
    for name in ("feat_embedding.0.weight", "img_order_embedding.weight"):
        if VISUAL + name not in theirs:
            raise CheckpointError(f"the checkpoint lacks {VISUAL}{name}")
        shapes[name] = tuple(theirs[VISUAL + name].shape)
        if len(shapes[name]) != 2:
            raise CheckpointError(f"the checkpoint's {VISUAL}{name} has shape {shapes[name]}, and needs two sizes")
    features = shapes["feat_embedding.0.weight"][1]
    images = shapes["img_order_embedding.weight"][0]
    _agree("feat_dim", claims.visual_features, features, f"{VISUAL}feat_embedding")
    _agree("n_images", claims.visual_images, images, f"{VISUAL}img_order_embedding")
    return VisualConfig(
        features=features,
        images=images,
        tokens=PAPER_TOKENS if claims.visual_tokens is None else claims.visual_tokens,
        positions=len(theirs[POSITIONS]),
        vocabulary=vocabulary,
    )


def _agree(name: str, claimed: object, found: object, where: str) -> None:
    if claimed is not None and claimed != found:
        raise CheckpointError(f"{name} {_shown(claimed)} is claimed, and the checkpoint says {_shown(found)} ({where})")


def _setting(settings: Mapping[str, Any], name: str, kind: type) -> Any:
    value = settings.get(name)
    if value is None:
        return None
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (kind is not bool and isinstance(value, bool)):
        raise CheckpointError(f"the settings' {name} must be a {kind.__name__}, got {value!r}")
    return kind(value)


def _reduction_setting(settings: Mapping[str, Any]) -> int | None:
    """r, by the name that it has in the authors' code for texts, or in that for images."""
    names = [name for name in ("r", "side_reduction_factor", "task_reduction_factor") if settings.get(name) is not None]
    values = {_setting(settings, name, int) for name in names}
    if len(values) > 1:
        raise CheckpointError(f"the settings' {' and '.join(names)} differ; give one")
    return next(iter(values), None)


def _visual_tokens(settings: Mapping[str, Any]) -> int | None:
    """Tokens of one image: n_boxes, rounded down to a square as in the authors' pooling; 0 without their pooling."""
    if _setting(settings, "downsample", bool) is False:
        return 0
    boxes = _whole(settings, "n_boxes")
    return None if boxes is None else math.isqrt(max(boxes, 0)) ** 2


def _whole(settings: Mapping[str, Any], name: str) -> int | None:
    """A whole number, which the authors' options may write as 2048.0."""
    value = settings.get(name)
    return int(value) if isinstance(value, float) and value.is_integer() else _setting(settings, name, int)


def _listed(settings: Mapping[str, Any], name: str, count: int) -> tuple[int, ...] | None:
    """Theirs is null for every layer; a name that is not there says nothing."""
    if name not in settings:
        return None
    value = settings[name]
    if value is None:
        return tuple(range(count))
    if isinstance(value, str):  # an option's text, as "[1, 3]"
        try:
            value = json.loads(value)
        except ValueError:
            value = settings[name]
    if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        raise CheckpointError(f"the settings' {name} must be a list of layer numbers or null, got {value!r}")
    return tuple(value)


def _use_gate(settings: Mapping[str, Any]) -> Gate | None:
    """A schedule's gate is a fixed number once training is over."""
    names: dict[Any, Gate] = {
        "learnable": "learnable",
        "none": "none",
        "one": "one",
        "schedule-linear": "fixed",
        "schedule-hyperbolic": "fixed",
    }
    value = settings.get("use_gate")
    if value is not None and not (isinstance(value, str) and value in names):
        raise CheckpointError(f"the settings' use_gate must be one of {', '.join(names)}, got {value!r}")
    return None if value is None else names[value]


def _shown(value: object) -> str:
    return _numbers(value) or "none" if isinstance(value, tuple) else str(value)


def _numbers(values: Iterable[int]) -> str:
    return ",".join(str(value) for value in values)
