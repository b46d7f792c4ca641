"""Structural initialization: a side network starts with the most important part of every backbone layer.

The importance of each backbone weight decides what is kept; LST's code calls this network pruning. Two orders:

- `reference`: keeps the same indices as the authors' code (ylsung/Ladder-Side-Tuning, pruning v2). A set of residual
  dimensions is carried from layer to layer, and every matrix that writes the residual stream selects a new set.
- `consistent`: our order. One set of residual dimensions for the whole network, as its skip connections require; every
  head keeps its best channels, the same for queries and keys, and the same for values and outputs.

Knows weights only; the caller computes the importances.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ladder.backbone.layers import Block, BlockShape
from ladder.backbone.model import Backbone
from ladder.backbone.quantize import QuantizedLinear, full_weight
from ladder.config import SideConfig
from ladder.errors import SideConfigError
from ladder.side.network import SideNetwork, SideStack, side_shape

Order = Literal["reference", "consistent"]

Importance = Mapping[str, Tensor]
"""Importance of each weight, by its name in the backbone, in the weight's shape. `shared` and `head` are (D,): absolute
values summed over the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One attention or feed-forward of a block: a norm, matrices that read the residual stream, one that writes it."""

    module: str
    norm: str
    reads: tuple[str, ...]
    writes: str
    pairs: tuple[tuple[str, ...], ...]
    """Groups of matrices that must keep the same inner channels."""
    has_heads: bool

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of all matrices."""
        return (*self.reads, self.writes)


def _attention(module: str, norm: str) -> Part:
    pairs = (("q", "k"), ("v", "o"))
    return Part(module=module, norm=norm, reads=("q", "k", "v"), writes="o", pairs=pairs, has_heads=True)


def _feed_forward(*reads: str) -> Part:
    pairs = ((*reads, "wo"),)
    return Part(module="feed_forward", norm="feed_norm", reads=reads, writes="wo", pairs=pairs, has_heads=False)


PARTS = (
    _attention("attention", "attention_norm"),
    _attention("cross_attention", "cross_norm"),
    _feed_forward("wi"),
    _feed_forward("wi_0", "wi_1"),
)
"""The parts that a block may have, in the order of its forward pass. Biases are cut as their matrices are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What one part keeps, as indices into the backbone's part."""

    before: Tensor
    """(d,) residual dimensions that it reads."""
    inner: Mapping[str, Tensor]
    """Channels by matrix: rows of those that read, columns of the one that writes."""
    after: Tensor
    """(d,) residual dimensions that it writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a side network keeps, in every block of its backbone."""

    first: Tensor
    """(d,) dimensions of the embeddings."""
    cuts: Mapping[str, Cut]
    """By the part's name in the backbone, for example "encoder.blocks.0.attention"."""
    last: Mapping[str, Tensor]
    """(d,) dimensions of each stack's final norm, by the stack's name; absent for a norm that keeps its start."""


def initialize(
    side: SideNetwork, backbone: Backbone, importance: Importance, *, order: Order, align: bool | None = None
) -> None:
    """Copy the backbone's most important weights into a side network's blocks, norms and relative biases, in place.

    The whole backbone is ranked; each kept layer gets its part. Gates and trained heads keep their start. In the
    consistent order so does the final norm before a trained head: the backbone's norm is small (0.15 in flan-t5-small),
    and the head would get too little signal.

    Args:
        align: start downsample projections as a selection of the kept residual dimensions and the upsample as its
            reverse; False keeps their start. Consistent order only. None: True for a text head, which learns faster
            with it; other heads do not.

    Raises:
        SideConfigError: an unknown order, `align` in the reference order, or a backbone with unknown parts.
    """
    aligned = order == "consistent" and side.config.has_decoder if align is None else align
    if aligned and order == "reference":
        raise SideConfigError("the reference order has no residual dimensions to align to: use the consistent order")
    plan = make_plan(backbone, importance, side.config, order=order)
    for name, stack in side.named_children():
        if isinstance(stack, SideStack):
            _fill(stack, name, backbone, plan)
    if aligned:
        _align(side, plan.first)


def make_plan(backbone: Backbone, importance: Importance, config: SideConfig, *, order: Order) -> Plan:
    """Decide what a side network of shape `config` keeps.

    Args:
        importance: for the encoder's matrices and `shared`; for a text head, for the decoder's and `head` too.

    Raises:
        SideConfigError: as `check_order`.
    """
    check_order(backbone, order)
    plan = _reference_plan if order == "reference" else _consistent_plan
    stacks = ("encoder", "decoder") if config.has_decoder else ("encoder",)
    return plan(backbone, importance, side_shape(config, backbone.config), stacks)


def check_order(backbone: Backbone, order: Order) -> None:
    """Check that a backbone can be cut in this order.

    Raises:
        SideConfigError: an unknown order, or blocks that it cannot cut.
    """
    if order not in get_args(Order):
        raise SideConfigError(f"order must be {' or '.join(get_args(Order))}, got {order!r}")
    for stack in _stacks(backbone):
        for block in getattr(backbone, stack).blocks:
            _block_parts(block)
            if order == "reference" and not isinstance(block, Block):
                raise SideConfigError("the reference order is for T5's blocks alone: use the consistent order here")


def magnitude(backbone: Backbone) -> dict[str, Tensor]:
    """Return importances by magnitude: the weights themselves, float32."""
    scores = {name: full_weight(module) for name, module in matrices(backbone)}
    tables = ("shared", "head") if backbone.has_decoder else ("shared",)
    return scores | {name: getattr(backbone, name).detach().float().abs().sum(0) for name in tables}


def matrices(
    backbone: Backbone, stacks: Sequence[str] | None = None
) -> Iterator[tuple[str, nn.Linear | QuantizedLinear]]:
    """Yield every matrix that pruning ranks, with its weight's name, in the order of the forward pass.

    Raises:
        SideConfigError: a block has a parameter that no entry of `PARTS` covers.
    """
    for path, part, module in _parts(backbone, stacks or _stacks(backbone)):
        for name in part.matrices:
            yield f"{path}.{name}.weight", getattr(module, name)


def _stacks(backbone: Backbone) -> tuple[str, ...]:
    return ("encoder", "decoder") if backbone.has_decoder else ("encoder",)


def _parts(backbone: Backbone, stacks: Sequence[str]) -> Iterator[tuple[str, Part, nn.Module]]:
    for stack in stacks:
        for index, block in enumerate(getattr(backbone, stack).blocks):
            for part in _block_parts(block):
                yield f"{stack}.blocks.{index}.{part.module}", part, getattr(block, part.module)


def _block_parts(block: nn.Module) -> list[Part]:
    parts = [part for part in PARTS if _has(block, part)]
    known = {part.norm for part in parts} | {"relative_bias"}
    known |= {f"{part.module}.{name}" for part in parts for name in part.matrices}
    unknown = [name for name, _ in block.named_parameters() if name.rpartition(".")[0] not in known]
    if unknown or not parts:
        raise SideConfigError(
            f"structural initialization does not know {unknown[0] if unknown else 'a block without parts'}: "
            "start side networks on this backbone at random"
        )
    return parts


def _has(block: nn.Module, part: Part) -> bool:
    module = getattr(block, part.module, None)
    return all(hasattr(module, name) for name in part.matrices)


def _reference_plan(backbone: Backbone, importance: Importance, shape: BlockShape, stacks: Sequence[str]) -> Plan:
    """Cut layer after layer. The decoder's first layer reads the dimensions that the encoder's last one kept.

    The authors' code does not handle gated feed-forwards: here their two input matrices are ranked as queries, keys and
    values are, by the product of their importances.
    """
    first = carried = _kept_as_theirs(importance["shared"][:, None], shape.width)
    cuts: dict[str, Cut] = {}
    last: dict[str, Tensor] = {}
    for path, part, _ in _parts(backbone, stacks):
        read = [importance[f"{path}.{name}.weight"][:, carried] for name in part.reads]
        inner = _kept_as_theirs(reduce(torch.mul, read), _inner_width(part, shape))
        after = _kept_as_theirs(importance[f"{path}.{part.writes}.weight"][:, inner], shape.width)
        cuts[path] = Cut(before=carried, inner=dict.fromkeys(part.matrices, inner), after=after)
        last[path.partition(".")[0]] = carried = after
    return Plan(first=first, cuts=cuts, last=last)


def _kept_as_theirs(importance: Tensor, count: int) -> Tensor:
    """Select `count` rows of (n, columns), in the order in which CPython (3.8 to 3.13) iterates over a set of them."""
    scores = importance.norm(p=1, dim=1)
    pruned = scores.argsort()[: len(scores) - count].tolist()
    return torch.tensor(list(set(range(len(scores))) - set(pruned)), device=scores.device)


def _inner_width(part: Part, shape: BlockShape) -> int:
    return shape.heads * shape.head_width if part.has_heads else shape.hidden


def _consistent_plan(backbone: Backbone, importance: Importance, shape: BlockShape, stacks: Sequence[str]) -> Plan:
    """Keep one set of residual dimensions, and in each part the most important channels for them; all ascending."""
    kept = _best(_residual_scores(backbone, importance, stacks), shape.width)
    cuts = {
        path: Cut(before=kept, inner=_inner(importance, path, part, kept, shape), after=kept)
        for path, part, _ in _parts(backbone, stacks)
    }
    return Plan(first=kept, cuts=cuts, last=dict.fromkeys(stacks, kept) if "decoder" in stacks else {})


def _residual_scores(backbone: Backbone, importance: Importance, stacks: Sequence[str]) -> Tensor:
    """(D,): the sum of each residual dimension's shares in all matrices that read or write it."""
    scores = [importance["shared"]] + ([importance["head"]] if "decoder" in stacks else [])
    for path, part, _ in _parts(backbone, stacks):
        for name in part.matrices:
            scores.append(importance[f"{path}.{name}.weight"].abs().sum(1 if name == part.writes else 0))
    return torch.stack([_share(score) for score in scores]).sum(0)


def _inner(importance: Importance, path: str, part: Part, kept: Tensor, shape: BlockShape) -> dict[str, Tensor]:
    """The channels that each matrix keeps, ranked by importance for the `kept` residual dimensions."""
    inner: dict[str, Tensor] = {}
    for pair in part.pairs:
        shares = [_channel_shares(importance[f"{path}.{name}.weight"], name == part.writes, kept) for name in pair]
        by_head = torch.stack(shares).sum(0).view(shape.heads if part.has_heads else 1, -1)
        width = _inner_width(part, shape) // len(by_head)
        best = torch.stack([_best(row, width) + head * by_head.shape[1] for head, row in enumerate(by_head)])
        inner |= dict.fromkeys(pair, best.flatten())
    return inner


def _channel_shares(importance: Tensor, writes: bool, kept: Tensor) -> Tensor:
    """(inner,): each channel's share in a matrix that reads (inner, D) or writes (D, inner) the residual stream."""
    scores = importance[kept].abs().sum(0) if writes else importance[:, kept].abs().sum(1)
    return _share(scores)


def _share(scores: Tensor) -> Tensor:
    return scores / scores.sum().clamp(min=torch.finfo(scores.dtype).tiny)


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores, ascending; of equal scores the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


@torch.no_grad()
def _fill(stack: SideStack, name: str, backbone: Backbone, plan: Plan) -> None:
    source = getattr(backbone, name)
    for layer, rung in zip(stack.layers, stack.rungs, strict=True):
        target, block = rung.get_submodule("block"), source.blocks[layer]
        for part in _block_parts(block):
            _fill_part(target, block, part, plan.cuts[f"{name}.blocks.{layer}.{part.module}"])
        _copy_all(target, block, "relative_bias")
    if stack.layers:
        _copy_all(stack, source, "relative_bias")
    if name in plan.last:
        _copy_rows(stack.final_norm, source.final_norm, plan.last[name])


def _fill_part(target: nn.Module, source: nn.Module, part: Part, cut: Cut) -> None:
    _copy_rows(getattr(target, part.norm), getattr(source, part.norm), cut.before)
    for name in part.matrices:
        ours, theirs = getattr(getattr(target, part.module), name), getattr(getattr(source, part.module), name)
        writes = name == part.writes
        rows, columns = (cut.after, cut.inner[name]) if writes else (cut.inner[name], cut.before)
        _copy_rows(ours, theirs, rows, columns)


def _copy_rows(target: nn.Module, source: nn.Module, rows: Tensor, columns: Tensor | None = None) -> None:
    """Copy rows of the weight and bias of a norm or a matrix; `columns` apply to a matrix's weight."""
    for name, parameter in target.named_parameters():
        values = _read(source, name)[rows]
        parameter.copy_(values if columns is None or values.dim() == 1 else values[:, columns])


def _copy_all(target: nn.Module, source: nn.Module, name: str) -> None:
    if hasattr(target, name):
        for parameter_name, parameter in getattr(target, name).named_parameters():
            parameter.copy_(_read(getattr(source, name), parameter_name))


def _read(module: nn.Module, name: str) -> Tensor:
    """A parameter in float32, dequantized if it is quantized."""
    if name == "weight" and isinstance(module, nn.Linear | QuantizedLinear):
        return full_weight(module)
    return getattr(module, name).detach().float()


@torch.no_grad()
def _align(side: SideNetwork, kept: Tensor) -> None:
    """Make downsamples select the `kept` dimensions, and the upsample write them back to the same dimensions."""
    narrow = torch.arange(len(kept), device=kept.device)
    for name, module in side.named_modules():
        if isinstance(module, nn.Linear) and name.endswith("downsample"):
            module.weight.zero_()[narrow, kept] = 1
        elif isinstance(module, nn.Linear) and name == "upsample":
            module.weight.zero_()[kept, narrow] = 1
