"""Sizes before training: the LST authors' counts exactly, torch's own flops, and what a real step keeps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ladder import (
    Backbone,
    BackboneConfig,
    BackboneError,
    Images,
    SideConfig,
    SideConfigError,
    SideNetwork,
    load_backbone,
)
from ladder.config import VisualConfig
from ladder.side.cost import CostModel, Load, backbone_flops, count_parameters, dropped_gates, kept_patterns, side_flops
from ladder.side.known_backbones import NAMED, BackboneShape, backbone_shape

TABLE_1 = (1, 2, 3, 5, 6, 7, 9, 10, 11)
"""Kept layers of T5-base in the paper's first table."""


def authors(name: str) -> BackboneShape:
    """A T5 with the vocabulary that their tokenizer has."""
    return BackboneShape(name=name, config=replace(NAMED[name].config, vocab_size=32100))


@pytest.mark.parametrize(
    ("name", "count"), [("t5-base", 222_882_048), ("t5-large", 737_639_424), ("t5-3b", 2_851_569_664)]
)
def test_a_tied_head_counts_once(name: str, count: int) -> None:
    assert CostModel(authors(name)).backbone_parameters == count


@pytest.mark.parametrize(
    ("name", "r", "layers", "count", "percent"),
    [
        ("t5-base", 8, TABLE_1, 3_878_712, 1.740),
        ("t5-large", 8, tuple(range(1, 24, 2)), 9_057_328, 1.228),
        ("t5-3b", 8, (23,), 2_494_896, 0.087),
        ("t5-base", 8, None, 5_097_240, 2.287),
        ("t5-base", 4, None, 16_386_072, 7.352),
        ("t5-base", 16, None, 1_775_256, 0.797),
        ("t5-base", 32, None, 694_872, 0.312),
        ("t5-base", 8, (2, 3, 6, 7, 10, 11), 2_660_184, 1.194),
        ("t5-base", 8, (3, 7, 11), 1_441_656, 0.647),
    ],
)
def test_counts_are_the_authors(name: str, r: int, layers: tuple[int, ...] | None, count: int, percent: float) -> None:
    shape = authors(name)
    config = SideConfig(reduction=r, encoder_layers=layers, decoder_layers=layers).resolve(shape.config)
    with torch.device("meta"):
        ours = count_parameters(SideNetwork(config, shape.config))
    theirs = ours + dropped_gates(config, shape.config)
    assert theirs == count
    backbone = {"t5-base": 222_882_048, "t5-large": 737_639_424, "t5-3b": 2_851_569_664}[name]
    assert round(100 * theirs / backbone, 3) == percent


def test_only_learnable_gates_of_dropped_layers_are_theirs_alone() -> None:
    config = SideConfig(encoder_layers=(1,), decoder_layers=(0, 1), gate="none").resolve(NAMED["t5-small"].config)
    assert dropped_gates(config, NAMED["t5-small"].config) == 0
    assert dropped_gates(replace(config, gate="learnable"), NAMED["t5-small"].config) == 5 + 4


TINY = BackboneConfig(d_model=24, d_kv=6, d_ff=36, num_heads=2, num_layers=3, num_decoder_layers=3, vocab_size=40)
GATED = replace(TINY, feed_forward_proj="gated-gelu", scale_output=False)
SHAPES = {
    "text": SideConfig(reduction=3),
    "dropped": SideConfig(reduction=2, encoder_layers=(1,), decoder_layers=(0, 2), gate_form="channel"),
    "no rungs": SideConfig(reduction=2, encoder_layers=(), decoder_layers=()),
    "late": SideConfig(reduction=2, mix_after=True, merge_last=True, gate="none", bias=False),
    "linear": SideConfig(reduction=2, encoder_layers=(0, 1), head="linear", outputs=5),
    "mlp": SideConfig(reduction=2, head="mlp", outputs=4),
    "attention": SideConfig(reduction=2, head="attention", outputs=4),
    "images": SideConfig(reduction=2, encoder_layers=(1,), visual=VisualConfig(features=10, tokens=4)),
    "images, linear": SideConfig(reduction=2, head="linear", outputs=5, visual=VisualConfig(features=10, tokens=0)),
}
LOAD = Load(tokens=7, rows=3, new_tokens=2, dtype=torch.float32, images=2, image_tokens=9)


def run(side: SideNetwork, backbone: Backbone, rows: int):
    """Its outputs (N, outputs or V), with the flops of backbone and side network."""
    ids, mask = torch.zeros(rows, LOAD.tokens, dtype=torch.long), torch.ones(rows, LOAD.tokens, dtype=torch.bool)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as frozen:  # it knows no CPU's fused attention
        taps = backbone.encode(ids, mask, side.encoder_depth)
        if side.config.visual is not None:
            taps = replace(taps, images=Images.of(torch.zeros(rows, LOAD.images, LOAD.image_tokens, 10)))
        decoder_taps = None
        if side.config.has_decoder:
            decoder_taps = backbone.decode(torch.zeros(rows, LOAD.new_tokens, dtype=torch.long), taps.final, mask)
            backbone.logits(decoder_taps.final)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as ours:
        memory = side.encode(taps)
        mask = side.memory_mask(taps)
        out = side.decode(decoder_taps, memory, mask) if decoder_taps else side.read(memory, mask)
    held = [t for each in (taps, decoder_taps) if each for t in (each.embeddings, *each.blocks, each.final)]
    held += [taps.images.features] if taps.images else []
    return out, ours.get_total_flops(), frozen.get_total_flops(), held


@pytest.mark.parametrize("backbone", [TINY, GATED], ids=["relu", "gated"])
@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_torchs_count(backbone: BackboneConfig, shape: str) -> None:
    side = SideNetwork(SHAPES[shape], backbone).eval()
    with torch.no_grad():
        _, ours, frozen, _ = run(side, Backbone(backbone), rows=1)
    assert side_flops(side.config, backbone, LOAD) == ours
    assert backbone_flops(side.encoder_depth, backbone, LOAD) == frozen


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["dropped", "late", "mlp", "images", "images, linear"])
def test_training_bytes_are_what_a_real_step_holds(shape: str) -> None:
    side, backbone = SideNetwork(SHAPES[shape], TINY).train(), Backbone(TINY)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out, _, _, held = run(side, backbone, rows=LOAD.rows)
        out = backbone.logits(out).flatten(0, 1) if side.config.has_decoder else out
        F.cross_entropy(out, torch.zeros(len(out), dtype=torch.long))
    for tensor in (
        *side.parameters(),
        *side.buffers(),
        *backbone.parameters(),
        *[each for each in held if each is not None],
    ):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    taps = sum(tensor.nbytes for tensor in held if tensor is not None)
    weights = 4 * sum(parameter.numel() for parameter in backbone.parameters())
    frozen = 4 * side.visual.positions.numel() if side.config.visual else 0
    sizes = CostModel(BackboneShape(name="tiny", config=TINY), LOAD).estimate(SHAPES[shape])
    assert sizes.training_bytes == pytest.approx(
        weights + 16 * count_parameters(side) + frozen + taps + activations, abs=64
    )
    assert sizes.serving_bytes == weights + 4 * count_parameters(side) + frozen + taps


def test_a_side_network_of_images() -> None:
    """Its weights are counted as stored; each image adds 36 tokens to memory and arithmetic, none to the backbone's."""
    shape, config = NAMED["t5-small"], SideConfig(reduction=4, visual=VisualConfig(features=2048))
    load = Load(tokens=20, rows=2)
    one, two = (CostModel(shape, replace(load, images=count)).estimate(config) for count in (1, 2))
    with torch.device("meta"):
        assert one.parameters == sum(p.numel() for p in SideNetwork(config, shape.config).parameters())
    assert two.serving_bytes - one.serving_bytes == 2 * 36 * 2048 * 2  # rows, tokens, features, bytes
    assert two.side_flops - one.side_flops > 2 * 36 * 2048 * 512
    assert two.training_bytes > one.training_bytes
    assert one.backbone_flops == CostModel(shape, load).estimate(SideConfig(reduction=4)).backbone_flops


def test_shares_are_of_the_backbone() -> None:
    sizes = CostModel(NAMED["t5-small"], Load(tokens=16, rows=2)).estimate(SideConfig(reduction=8))
    assert sizes.share == sizes.parameters / sizes.backbone_parameters
    assert 0.01 < sizes.share < 0.05
    assert 0.01 < sizes.flops_share < 0.1
    with pytest.raises(SideConfigError, match="reduction must be at most d_kv 64"):
        CostModel(NAMED["t5-small"]).estimate(SideConfig(reduction=65))


def test_patterns_keep_what_they_say() -> None:
    assert kept_patterns(5) == {"all": (0, 1, 2, 3, 4), "every 2nd": (0, 2, 4), "last half": (2, 3, 4)}


def test_names_need_no_file_and_folders_only_their_config(tmp_path: Path, tiny_t5: Path) -> None:
    assert backbone_shape("google/flan-t5-base").config.feed_forward_proj == "gated-gelu"
    assert backbone_shape("t5-base").tied
    (tmp_path / "config.json").write_text((tiny_t5 / "config.json").read_text(), encoding="utf-8")
    found, loaded = backbone_shape(str(tmp_path)), load_backbone(tiny_t5)
    assert found.config == loaded.config
    assert CostModel(found).backbone_parameters == sum(p.numel() for p in loaded.parameters())
    with pytest.raises(BackboneError, match="there is no folder t6-base"):
        backbone_shape("t6-base")


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("t5-small", 60.5),
        ("t5-large", 737.7),
        ("t5-11b", 11307.3),
        ("flan-t5-small", 77.0),
        ("flan-t5-base", 247.6),
        ("flan-t5-xl", 2849.8),
        ("flan-t5-xxl", 11135.3),
        ("mt5-small", 300.2),
        ("mt5-base", 582.4),
        ("mt5-xxl", 12921.1),
    ],
)
def test_named_shapes_have_their_published_sizes(name: str, millions: float) -> None:
    assert CostModel(NAMED[name]).backbone_parameters / 1e6 == pytest.approx(millions, abs=0.06)
