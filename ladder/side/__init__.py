"""A side network: rungs, heads, files, starts, cost. What learns."""

from ladder.side.attention_head import AttentionHead
from ladder.side.checkpoint import as_served, load_side
from ladder.side.cost import CostModel, Load, backbone_flops, count_parameters, kept_patterns, side_flops
from ladder.side.known_backbones import NAMED, backbone_shape
from ladder.side.network import MlpHead, SideNetwork
from ladder.side.structural_init import Order, check_order, initialize, magnitude, matrices

__all__ = [
    "NAMED",
    "AttentionHead",
    "CostModel",
    "Load",
    "MlpHead",
    "Order",
    "SideNetwork",
    "as_served",
    "backbone_flops",
    "backbone_shape",
    "check_order",
    "count_parameters",
    "initialize",
    "kept_patterns",
    "load_side",
    "magnitude",
    "matrices",
    "side_flops",
]
