"""Products of 8-bit weights and activations: exact in whole numbers, near the whole backbone, blind to neighbours."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from ladder import Backbone, load_backbone, run_backbone
from ladder.backbone.kv_cache import KeyValues
from ladder.backbone.layers import Attention, BlockShape, absorbs_projection, fused_linear, gelu_tanh, padding_bias
from ladder.backbone.quantize import W8A8Linear, count_weights, full_precision, held_bytes, quantize_backbone
from tests import families, tiny

ROWS = [[5, 9, 17], [200] * 12, [44], [100, 3, 60, 61, 62]]
BOUND = 0.1
"""Relative error of a state of random weights; of one product about 0.011."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_t5(tmp_path_factory.mktemp("backbones") / "t5", seed=2)


@pytest.fixture(scope="module")
def backbone(folder) -> Backbone:
    return load_backbone(folder, quantize="w8a8")


def make(width: int, outputs: int, *, bias: bool = False, seed: int = 0) -> tuple[nn.Linear, W8A8Linear]:
    torch.manual_seed(seed)
    linear = nn.Linear(width, outputs, bias=bias).requires_grad_(False)
    return linear, W8A8Linear(linear)


def exact(layer: W8A8Linear, hidden: torch.Tensor) -> torch.Tensor:
    """By float64 over the rounded numbers."""
    codes, scales = layer.prepare(hidden)
    product = (codes.double() - 128) @ layer.codes.double().T
    return (product * layer.scales.double() * scales.double()).float()


@settings(deadline=None, max_examples=30)
@given(
    width=st.sampled_from([1, 3, 8, 64, 1024]),
    outputs=st.sampled_from([1, 5, 64]),
    rows=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_the_product_of_the_rounded_numbers_is_exact(width, outputs, rows, seed):
    _, layer = make(width, outputs, seed=seed)
    hidden = torch.randn(rows, width) * 10.0 ** torch.randint(-3, 4, (rows, 1))
    assert_close(layer(hidden), exact(layer, hidden), rtol=1e-6, atol=1e-6)


def test_no_sum_overflows_where_every_product_is_the_largest():
    layer = W8A8Linear(nn.Linear(1024, 16, bias=False).requires_grad_(False))
    layer.codes.fill_(63)
    layer.scales.fill_(1.0)
    layer.load_state_dict(layer.state_dict())
    for sign in (1.0, -1.0):
        assert_close(layer(sign * torch.ones(3, 1024)), torch.full((3, 16), sign * 63.0 * 1024))


def test_without_its_kernel_float32_gives_the_same_numbers(monkeypatch):
    _, layer = make(512, 96)
    hidden = torch.randn(40, 512)
    expected = layer(hidden)
    layer._packed = None
    assert torch.equal(layer(hidden), expected)


def test_an_error_is_half_a_step_of_the_token_and_of_the_row():
    linear, layer = make(64, 32)
    hidden = torch.randn(200, 64)
    found = layer(hidden)
    assert 0.001 < (found - linear(hidden)).norm() / linear(hidden).norm() < 0.02
    codes, scales = layer.prepare(hidden)
    assert ((codes.float() - 128) * scales - hidden).abs().le(scales / 2 * 1.001).all()


def test_a_token_of_zeros_stays_zero_and_one_that_is_not_finite_stays_alone():
    _, layer = make(16, 8)
    hidden = torch.randn(4, 16)
    expected = layer(hidden)[2:]
    hidden[0], hidden[1, 3] = 0.0, float("nan")
    found = layer(hidden)
    assert (found[0] == 0).all()
    assert not found[1].isfinite().any()
    assert torch.equal(found[2:], expected)


def test_a_bias_is_added_and_layers_share_the_rounding():
    linear, layer = make(64, 8, bias=True)
    other = make(64, 24, seed=1)[1]
    hidden = torch.randn(2, 3, 64)
    assert_close(layer(hidden) - linear.bias, exact(layer, hidden), atol=1e-5, rtol=1e-5)
    first, second = fused_linear(hidden, layer, other)
    assert torch.equal(first, layer(hidden))
    assert torch.equal(second, other(hidden))


def test_gradients_pass_as_if_nothing_was_rounded():
    _, layer = make(16, 8)
    hidden = torch.randn(2, 16, requires_grad=True)
    layer(hidden).sum().backward()
    assert_close(hidden.grad, layer.full_weight().sum(0).expand(2, -1))


def test_an_answer_does_not_depend_on_the_rows_beside_it(backbone):
    beside = run_backbone(backbone, ROWS)
    for row, ids in enumerate(ROWS):
        alone = run_backbone(backbone, [ids])
        for many, one in zip(beside.taps.blocks, alone.taps.blocks, strict=True):
            assert_close(
                many[row, : len(ids)], one[0], atol=2e-2, rtol=2e-2
            )  # a step may tip where a sum's last bit does


def test_states_and_logits_are_near_the_whole_backbones(folder):
    calm = load_backbone(folder)
    for module in calm.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(0.3)  # random attention of full strength is all or nothing: a small error tips it over
    rounded = copy.deepcopy(calm)
    quantize_backbone(rounded, "w8a8")
    ours, theirs = run_backbone(rounded, ROWS), run_backbone(calm, ROWS)
    for state in (lambda given: given.taps.final[given.taps.mask], lambda given: given.decoder_taps().final):
        assert 0 < (state(ours) - state(theirs)).norm() / state(theirs).norm() < BOUND
    state = theirs.decoder_taps().final
    whole, quick = calm.logits(state), rounded.logits(state)
    assert 0 < (quick - whole).norm() / whole.norm() < 0.05
    assert_close(rounded.logits(state, torch.tensor([3, 7])), whole[..., [3, 7]])  # labels: the whole head


def test_the_head_lets_gradients_through_unrounded(backbone):
    state = torch.randn(2, 1, backbone.config.d_model, requires_grad=True)
    backbone.logits(state).sum().backward()
    assert state.grad is not None
    assert state.grad.abs().sum() > 0


def test_it_pickles_copies_and_loads_its_state(backbone, folder):
    expected = run_backbone(backbone, ROWS).taps.final
    again = pickle.loads(pickle.dumps(copy.deepcopy(backbone)))
    assert torch.equal(run_backbone(again, ROWS).taps.final, expected)
    other = load_backbone(folder, quantize="w8a8")
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(run_backbone(other, ROWS).taps.final, expected)


def test_weights_are_counted_once_and_every_byte_is(backbone, folder):
    whole = load_backbone(folder)
    assert count_weights(backbone) == count_weights(whole)
    plain = full_precision(backbone)
    assert plain.vocabulary is None
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}
    held = sum(2 * module.codes.nbytes for module in backbone.modules() if isinstance(module, W8A8Linear))
    assert held_bytes(backbone) > held


@pytest.mark.slow
@pytest.mark.parametrize("family", families.MAKERS)
def test_every_family_can_be_quantised(family, tmp_path):
    made = families.make(family, tmp_path / family)
    found, whole = (run_backbone(load_backbone(made, quantize=how), ROWS) for how in ("w8a8", "none"))
    assert any(isinstance(module, W8A8Linear) for module in found.backbone.modules())
    assert found.taps.blocks[0].isfinite().all()
    assert (found.taps.blocks[0] - whole.taps.blocks[0]).norm() / whole.taps.blocks[0].norm() < 0.3


def test_gelu_is_the_same_with_and_without_gradients():
    hidden = torch.cat([torch.linspace(-60, 60, 4001), torch.tensor([0.0, 1e-8, -1e-8, 1e30, -1e30])])
    expected = F.gelu(hidden, approximate="tanh")
    with torch.no_grad():
        assert_close(gelu_tanh(hidden), expected, atol=2e-6, rtol=1e-5)
        assert torch.equal(gelu_tanh(hidden.bfloat16()), F.gelu(hidden.bfloat16(), approximate="tanh"))
    assert torch.equal(gelu_tanh(hidden.requires_grad_()), expected)


@pytest.mark.parametrize("how", ["none", "w8a8"])
def test_one_step_without_keys_and_values_is_the_step_with_them(folder, how):
    """Whether a memory's keys and values are made depends on what else is asked; what comes out does not."""
    backbone = load_backbone(folder, quantize=how)
    given = run_backbone(backbone, [*ROWS, list(range(3, 40))])
    memory, mask = given.taps.final, given.taps.mask
    ids = torch.zeros(len(mask), 1, dtype=torch.long)
    unread, read = backbone.decode(ids, memory, mask), backbone.decode(ids, memory, mask, backbone.decoder_cache())
    for ours, theirs in zip((*unread.blocks, unread.final), (*read.blocks, read.final), strict=True):
        assert_close(ours, theirs, atol=2e-2 if how == "w8a8" else 1e-4, rtol=1e-3)
    assert (unread.final - read.final).norm() / read.final.norm() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_attention_without_keys_and_values_is_attention(dtype, scale):
    torch.manual_seed(0)
    shape = BlockShape(width=32, heads=4, head_width=8, hidden=64, gated=False, scale=scale)
    attention = Attention(shape).to(dtype).requires_grad_(False).eval()
    hidden, memory = torch.randn(3, 1, 32, dtype=dtype), torch.randn(3, 9, 32, dtype=dtype)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 4:], mask[2] = False, False
    bias = padding_bias(mask, dtype)
    with torch.no_grad():
        brief = attention.cross(hidden, memory, bias, None)
        usual = attention.cross(hidden, memory, bias, KeyValues())
    assert absorbs_projection(1, 9, 8)
    assert_close(
        brief, usual, atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=1e-5 if dtype == torch.float32 else 3e-2
    )


def test_gradients_of_a_block_pass_as_if_nothing_was_rounded(backbone):
    plain, given = full_precision(backbone), torch.randn(2, 5, backbone.config.d_model)
    found = []
    for each in (backbone, plain):
        hidden = given.clone().requires_grad_()
        each.encoder.blocks[0](hidden, torch.zeros(1, 1, 1, 5)).square().sum().backward()
        found.append(hidden.grad)
    assert_close(found[0], found[1], atol=1e-3, rtol=1e-3)


def test_what_was_quantised_without_gradients_can_be_trained_on(folder):
    with torch.inference_mode():
        backbone = load_backbone(folder, quantize="w8a8")
    state = torch.randn(1, 1, backbone.config.d_model, requires_grad=True)
    if not backbone.head.is_inference():
        backbone.logits(state).sum().backward()
        assert state.grad is not None
    assert not any(tensor.is_inference() for tensor in backbone.encoder.buffers())
