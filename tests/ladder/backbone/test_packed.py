"""Weights in oneDNN's layout: the backbone computes as before, and says the same of itself."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from ladder import Backbone, Taps, load_backbone
from ladder.backbone import count_weights, held_bytes, pack_backbone
from ladder.backbone.packed import PackedLinear, can_pack

IDS = torch.tensor([[5, 6, 7, 8, 1], [9, 3, 1, 0, 0]])
MASK = IDS.ne(0)
WITHIN = {"float32": 1e-5, "bfloat16": 0.05}


def packed(folder: Path, dtype: str = "float32") -> Backbone:
    backbone = load_backbone(folder, dtype=dtype)
    pack_backbone(backbone)
    return backbone


@torch.no_grad()
def states(backbone: Backbone) -> list[torch.Tensor]:
    """Taps of both stacks, of two tokens with a cache, and the LM head of all words and of some."""
    taps = backbone.encode(IDS, MASK)
    assert taps.final is not None
    cache = backbone.decoder_cache()
    first = backbone.decode(torch.zeros(2, 1, dtype=torch.long), taps.final, MASK, cache)
    second = backbone.decode(torch.tensor([[4], [7]]), taps.final, MASK, cache)
    alone = backbone.decode(torch.zeros(2, 1, dtype=torch.long), taps.final, MASK)
    assert second.final is not None
    logits = [backbone.logits(second.final), backbone.logits(second.final, torch.tensor([3, 9]))]
    return [tensor for each in (taps, first, second, alone) for tensor in all_of(each)] + logits


def all_of(taps: Taps) -> list[torch.Tensor]:
    assert taps.final is not None
    return [*taps.blocks, taps.final]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_backbone_computes_what_it_did(dtype: str, tiny_t5: Path) -> None:
    plain = load_backbone(tiny_t5, dtype=dtype)
    if not can_pack(plain):
        pytest.skip("oneDNN has no bfloat16 on this CPU")
    for ours, before in zip(states(packed(tiny_t5, dtype)), states(plain), strict=True):
        torch.testing.assert_close(ours, before, atol=WITHIN[dtype] * before.abs().max().item(), rtol=0)


def test_all_layers_are_packed_but_the_ones_that_are_read_as_matrices(tiny_t5: Path) -> None:
    backbone = packed(tiny_t5)
    left = [name for name, module in backbone.named_modules() if type(module) is nn.Linear]
    assert left
    assert all(name.endswith(("cross_attention.k", "cross_attention.v")) for name in left)
    assert isinstance(backbone.vocabulary, PackedLinear)


def test_its_size_and_name_stay(tiny_t5: Path) -> None:
    plain, ours = load_backbone(tiny_t5), packed(tiny_t5)
    assert count_weights(ours) == count_weights(plain)
    assert held_bytes(ours) == held_bytes(plain) + plain.head.nbytes  # the LM head is there twice
    assert ours.fingerprint == plain.fingerprint


def test_a_packed_layer_unpacks_copies_and_changes_its_dtype() -> None:
    linear = nn.Linear(24, 40)
    layer = PackedLinear(linear)
    assert torch.equal(layer.full_weight(), linear.weight)
    hidden = torch.randn(2, 3, 24)
    expected = linear(hidden).detach()
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(same(hidden).detach(), expected)
    torch.testing.assert_close(layer.to(torch.bfloat16).full_weight(), linear.weight.detach().bfloat16())


def test_gradients_flow_through_a_packed_layer() -> None:
    linear = nn.Linear(24, 40).requires_grad_(False)
    found = []
    for layer in (linear, PackedLinear(linear)):
        hidden = torch.ones(2, 24, requires_grad=True)
        layer(hidden).square().sum().backward()
        found.append(hidden.grad)
    torch.testing.assert_close(*found)


def test_quantized_layers_stay_as_they_are(tiny_t5: Path) -> None:
    backbone = load_backbone(tiny_t5, quantize="w8a8")
    before = {name: type(module) for name, module in backbone.named_modules()}
    pack_backbone(backbone)
    assert {name: type(module) for name, module in backbone.named_modules()} == before
