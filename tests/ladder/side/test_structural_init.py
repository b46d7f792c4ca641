"""A side network cut out of its backbone: index for index as the LST authors' code does it, and in our own order."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from ladder import Backbone, BackboneConfig, SideConfig, SideConfigError, SideNetwork
from ladder.backbone.families.t5 import backbone_name
from ladder.backbone.layers import RMSNorm
from ladder.side.network import side_shape
from ladder.side.structural_init import Plan, initialize, magnitude, make_plan
from tests.ladder import golden

PART = {
    "SelfAttention": "attention",
    "EncDecAttention": "cross_attention",
    "DenseReluDense": "feed_forward",
}


def stored_importance(variant: str, backbone):
    if variant != "d":
        return magnitude(backbone)
    stored = load_file(golden.FOLDER / "fisher_importance.safetensors")
    named = {backbone_name(name.removeprefix("fisher.")): tensor for name, tensor in stored.items()}
    return named | {"shared": named["shared"].sum(0)}


def kept(plan: Plan, name: str) -> torch.Tensor:
    """A plan's indices under the authors' name: shared, encoder.block.0.layer.0.SelfAttention.qkv"""
    if name == "shared":
        return plan.first
    stack, _, index, _, _, part, matrix = name.split(".")
    cut = plan.cuts[f"{stack}.blocks.{index}.{PART[part]}"]
    return cut.after if matrix in ("o", "wo") else cut.inner[matrix[0] if matrix == "qkv" else matrix]


@pytest.mark.parametrize("variant", ["c", "c3", "d"])
def test_reference_order_equals_the_authors(variant):
    backbone, stored = golden.load_backbone(), golden.load(variant)
    importance = stored_importance(variant, backbone)
    plan = make_plan(backbone, importance, stored.side.config, order="reference")
    names = stored.group("keep.")
    for name, indices in names.items():
        assert kept(plan, name).tolist() == indices.tolist(), name
    assert len(names) == 1 + 4 * 4 + 4 * 6
    side = SideNetwork(stored.side.config, backbone.config)
    initialize(side, backbone, importance, order="reference")
    expected = stored.side.state_dict()
    pruned = [name for name in expected if ".block." in name or "norm" in name or "relative_bias" in name]
    assert len(pruned) == 4 * 8 + 4 * 13 + 4
    for name in pruned:
        assert torch.equal(side.state_dict()[name], expected[name]), name


SHAPES = {
    "relu": {"feed_forward_proj": "relu", "scale_output": True},
    "gated": {"feed_forward_proj": "gated-gelu", "scale_output": False},
}
TEXT = SideConfig(head="text", reduction=4)
LINEAR = SideConfig(head="linear", outputs=3, reduction=2)


def make_backbone(seed: int = 0, **changes: object) -> Backbone:
    """A small random backbone whose heads together are not as wide as its residual stream."""
    values = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 3, "num_layers": 3, "num_decoder_layers": 2}
    values |= {"layer_norm_epsilon": 1e-12}  # a narrower norm sees it larger
    backbone = Backbone(BackboneConfig(**values | {"vocab_size": 50} | changes))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for parameter in backbone.parameters():
        parameter.data = torch.empty(parameter.shape).normal_(0, 0.4, generator=generator)
    if backbone.has_decoder and backbone.config.scale_output:
        backbone.head = backbone.shared
    return backbone


def make_side(backbone: Backbone, config: SideConfig) -> SideNetwork:
    return SideNetwork(config, backbone.config).eval()


@pytest.fixture(params=SHAPES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return make_backbone(**SHAPES[request.param])


def indices_as_theirs(scores: list[float], count: int) -> list[int]:
    """Slow and obvious: drop the lowest, walk what stays as a set."""
    order = sorted(range(len(scores)), key=lambda index: scores[index])
    return list(set(range(len(scores))) - set(order[: len(scores) - count]))


def cut_as_theirs(backbone: Backbone, reduction: int) -> dict[str, torch.Tensor]:
    """All that a text side network gets, by a plain walk over the backbone, whose signed weights are importances."""
    weights = {name: tensor.double() for name, tensor in backbone.state_dict().items()}
    carried = indices_as_theirs(weights["shared"].abs().sum(0).tolist(), backbone.config.d_model // reduction)
    cut = {}
    for stack in ("encoder", "decoder"):
        for index in range(len(getattr(backbone, stack).blocks)):
            for module, norm in (
                ("attention", "attention_norm"),
                ("cross_attention", "cross_norm"),
                ("feed_forward", "feed_norm"),
            ):
                path = f"{stack}.blocks.{index}"
                names = [name for name in weights if name.startswith(f"{path}.{module}.")]
                if not names:
                    continue
                cut[f"{path}.{norm}.weight"] = weights[f"{path}.{norm}.weight"][carried]
                reads = [name for name in names if name.split(".")[-2] not in ("o", "wo")]
                [writes] = set(names) - set(reads)
                product = 1
                for name in reads:
                    product = product * weights[name][:, carried]
                inner = indices_as_theirs(product.abs().sum(1).tolist(), len(product) // reduction)
                after = indices_as_theirs(weights[writes][:, inner].abs().sum(1).tolist(), len(carried))
                cut |= {name: weights[name][inner][:, carried] for name in reads}
                cut[writes] = weights[writes][after][:, inner]
                carried = after
        cut[f"{stack}.final_norm.weight"] = weights[f"{stack}.final_norm.weight"][carried]
        cut[f"{stack}.relative_bias.weight"] = weights[f"{stack}.relative_bias.weight"]
    return cut


@pytest.mark.parametrize("layers", [{}, {"encoder_layers": (1,), "decoder_layers": ()}, {"encoder_layers": ()}])
def test_reference_order_by_a_plain_walk(backbone, layers):
    side = make_side(backbone, SideConfig(head="text", reduction=4, **layers))
    expected = cut_as_theirs(backbone, 4)
    initialize(side, backbone, magnitude(backbone), order="reference")
    checked = 0
    for stack in (side.encoder, side.decoder):
        name = "encoder" if stack is side.encoder else "decoder"
        for layer, rung in zip(stack.layers, stack.rungs, strict=True):
            for part, tensor in rung.block.state_dict().items():
                assert_close(tensor.double(), expected[f"{name}.blocks.{layer}.{part}"], msg=part)
                checked += 1
        assert_close(stack.final_norm.weight.double(), expected[f"{name}.final_norm.weight"])
        assert bool(stack.layers) == hasattr(stack, "relative_bias")
    gated = backbone.config.feed_forward_proj == "gated-gelu"
    assert checked == len(side.encoder.layers) * (8 + gated) + len(side.decoder.layers) * (13 + gated)


@pytest.mark.parametrize("order", ["reference", "consistent"])
@pytest.mark.parametrize("config", [TEXT, LINEAR], ids=["text", "linear"])
def test_what_is_not_cut_out_stays(backbone, order, config):
    torch.manual_seed(3)
    side = make_side(backbone, config)
    before = {name: tensor.clone() for name, tensor in side.state_dict().items()}
    frozen = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    initialize(side, backbone, magnitude(backbone), order=order)
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in backbone.state_dict().items())
    kept = {name for name, tensor in side.state_dict().items() if torch.equal(tensor, before[name])}
    assert {name for name in before if "gate" in name or name.startswith("head.")} <= kept
    assert not {name for name in kept if ".block." in name or "relative_bias" in name}
    aligned = order == "consistent" and config is TEXT
    assert {name for name in before if "sample.weight" in name} & kept == (
        set() if aligned else {name for name in before if "sample.weight" in name}
    )
    if order == "consistent" and config is LINEAR:
        assert "encoder.final_norm.weight" in kept


@pytest.mark.parametrize("config", [TEXT, LINEAR, SideConfig(head="linear", outputs=1, reduction=3)], ids=str)
def test_consistent_keeps_one_residual_stream_and_matching_channels(backbone, config):
    plan = make_plan(backbone, magnitude(backbone), config, order="consistent")
    shape, heads = side_shape(config, backbone.config), backbone.config.num_heads
    assert len(plan.first) == shape.width
    for path, cut in plan.cuts.items():
        assert torch.equal(cut.before, plan.first)
        assert torch.equal(cut.after, plan.first)
        pairs = (("wi_0", "wi_1", "wo"), ("wi", "wo"), ("q", "k"), ("v", "o"))
        for pair in [pair for pair in pairs if pair[0] in cut.inner]:
            channels = cut.inner[pair[0]]
            assert all(torch.equal(cut.inner[name], channels) for name in pair)
            assert torch.equal(channels, channels.unique()), path  # ascending, none twice
            if "attention" in path:
                assert (channels // backbone.config.d_kv).bincount().tolist() == [shape.head_width] * heads
            else:
                assert len(channels) == shape.hidden
    stacks = ("encoder", "decoder") if config.has_decoder else ("encoder",)
    assert {path.partition(".")[0] for path in plan.cuts} == set(stacks)
    assert set(plan.last) == (set(stacks) if config.has_decoder else set())
    assert all(torch.equal(last, plan.first) for last in plan.last.values())


def silence_all_but(backbone: Backbone, reduction: int, generator: torch.Generator) -> torch.Tensor:
    """Zero all but one r-th of the residual dimensions and of every part's channels; the dimensions that are left."""
    config = backbone.config

    def some(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=generator)[: count // reduction].sort().values

    def only(weight: torch.Tensor, kept: torch.Tensor) -> None:
        mask = torch.zeros(len(weight), *[1] * (weight.dim() - 1))
        mask[kept] = 1
        weight.data.mul_(mask)

    residual = some(config.d_model)
    only(backbone.shared.T, residual)
    for stack in (backbone.encoder, backbone.decoder):
        for block in stack.blocks:
            for name in ("attention", "cross_attention"):
                if hasattr(block, name):
                    attention = getattr(block, name)
                    for module in (attention.q, attention.v):
                        by_head = [some(config.d_kv) + head * config.d_kv for head in range(config.num_heads)]
                        only(module.weight, torch.cat(by_head))
                        if module is attention.q:
                            only(attention.k.weight, torch.cat(by_head))
                        else:
                            only(attention.o.weight.T, torch.cat(by_head))
                    only(attention.o.weight, residual)
            hidden = some(config.d_ff)
            for module in (block.feed_forward.wi,) if hasattr(block.feed_forward, "wi") else ():
                only(module.weight, hidden)
            only(block.feed_forward.wo.weight.T, hidden)
            only(block.feed_forward.wo.weight, residual)
            for module in block.modules():  # what is read of a silent dimension is nothing
                if isinstance(module, torch.nn.Linear) and module.weight.shape[1] == config.d_model:
                    only(module.weight.T, residual)
    return residual


def test_a_backbone_with_room_to_spare_is_its_own_side_network(backbone):
    """Where dimensions and channels say nothing, cutting them away changes nothing: the side network alone (gate one)
    says what the backbone says, once its norms know that the dimensions that they miss were nothing."""
    residual = silence_all_but(backbone, 4, torch.Generator().manual_seed(1))
    side = make_side(backbone, SideConfig(head="text", reduction=4, gate="one"))
    initialize(side, backbone, magnitude(backbone), order="consistent")
    for module in side.modules():
        if isinstance(module, RMSNorm):
            module.weight.data.mul_(4**0.5)  # a mean over a quarter of the dimensions is four times the mean over all
    ids, labels = torch.tensor([[5, 7, 9, 11, 1], [6, 8, 1, 0, 0]]), torch.tensor([[0, 4, 3], [0, 2, 1]])
    mask = ids != 0
    taps = backbone.encode(ids, mask)
    memory = side.encode(taps)
    assert_close(memory, taps.final[:, :, residual], rtol=1e-4, atol=1e-4)
    decoded = side.decode(backbone.decode(labels, taps.final, mask), memory, mask)
    expected = backbone.decode(labels, taps.final, mask).final
    assert_close(decoded[:, :, residual], expected[:, :, residual], rtol=1e-4, atol=1e-4)


def test_consistent_order_works_on_norms_after_parts_and_biases():
    bart = make_backbone(model_type="bart", num_decoder_layers=0, feed_forward_proj="gelu", max_positions=20)
    config = SideConfig(head="mlp", outputs=2, reduction=4, encoder_layers=(0, 2))
    side, plan = make_side(bart, config), make_plan(bart, magnitude(bart), config, order="consistent")
    initialize(side, bart, magnitude(bart), order="consistent")
    ours, theirs = side.encoder.rungs[1].block, bart.encoder.blocks[2]
    rows = plan.cuts["encoder.blocks.2.attention"].inner["q"]
    assert torch.equal(ours.attention.q.weight, theirs.attention.q.weight[rows][:, plan.first])
    assert torch.equal(ours.attention.q.bias, theirs.attention.q.bias[rows])
    assert torch.equal(ours.attention.o.bias, theirs.attention.o.bias[plan.first])
    assert torch.equal(ours.feed_norm.weight, theirs.feed_norm.weight[plan.first])
    assert torch.equal(ours.feed_norm.bias, theirs.feed_norm.bias[plan.first])
    with pytest.raises(SideConfigError, match="use the consistent order"):
        initialize(side, bart, magnitude(bart), order="reference")


def test_a_block_that_nobody_described_is_refused(backbone):
    backbone.encoder.blocks[1].attention.rotation = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(SideConfigError, match=r"does not know attention\.rotation"):
        magnitude(backbone)


def test_bfloat16_weights_are_copied_as_they_are(backbone):
    rounded = {name: tensor.bfloat16().float() for name, tensor in backbone.state_dict().items()}
    backbone.load_state_dict(rounded)
    expected, side = make_side(backbone, TEXT), make_side(backbone, TEXT)
    torch.manual_seed(0)
    initialize(expected, backbone, magnitude(backbone), order="consistent")
    coarse = backbone.to(torch.bfloat16)
    initialize(side, coarse, magnitude(coarse), order="consistent")
    for name, tensor in side.state_dict().items():
        if ".block." in name:
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected.state_dict()[name]), name


def test_the_least_of_the_backbone_is_what_goes(backbone):
    """Dimensions, channels and units made ten times as large are the ones kept."""
    generator = torch.Generator().manual_seed(5)
    loud = torch.randperm(32, generator=generator)[:8].sort().values
    backbone.shared.data[:, loud] *= 10
    for stack in (backbone.encoder, backbone.decoder):
        for block in stack.blocks:
            for module in block.modules():
                if isinstance(module, torch.nn.Linear) and module.weight.shape[1] == 32:
                    module.weight.data[:, loud] *= 10
    assert torch.equal(make_plan(backbone, magnitude(backbone), TEXT, order="consistent").first, loud)


def test_aligned_projections_pick_and_put_back_the_kept_dimensions(backbone):
    kept = make_plan(backbone, magnitude(backbone), TEXT, order="consistent").first
    side, state = make_side(backbone, TEXT), torch.randn(5, 32)
    initialize(side, backbone, magnitude(backbone), order="consistent", align=True)
    for module in (side.encoder.first_downsample, side.decoder.first_downsample, side.decoder.rungs[1].downsample):
        assert torch.equal(module(state), state[:, kept])
    up = side.upsample(state[:, kept])
    assert torch.equal(up[:, kept], state[:, kept])
    assert up.count_nonzero() == 5 * len(kept)
    with pytest.raises(SideConfigError, match="use the consistent order"):
        initialize(side, backbone, magnitude(backbone), order="reference", align=True)
