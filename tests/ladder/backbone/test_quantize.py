"""Quantised backbones: near the whole one, named apart from it, and still blind to the rows beside a row."""

import copy
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from ladder import Backbone, BackboneError, load_backbone, run_backbone
from ladder.backbone.quantize import (
    BLOCK,
    LINEARS,
    Int8Linear,
    Nf4Linear,
    QuantizedLinear,
    check_method,
    count_weights,
    full_precision,
    full_weight,
    held_bytes,
    quantize_backbone,
)
from tests import families, tiny

METHODS = ("int8", "int4")
WIDE = {"d_model": 64, "d_kv": 16, "d_ff": 128}
"""Widths that blocks of 64 divide."""
BOUNDS = {"int8": 0.02, "int4": 0.2}
"""Relative error of a matrix's product and of a state, of random weights: about 0.008 and 0.09 for one product."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_t5(tmp_path_factory.mktemp("backbones") / "wide-t5", seed=2, **WIDE)


@pytest.fixture(scope="module")
def whole(folder) -> Backbone:
    return load_backbone(folder)


@pytest.fixture(scope="module", params=METHODS)
def quantised(request, folder) -> Backbone:
    return load_backbone(folder, quantize=request.param)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 250, (3, 20)), torch.ones(3, 20, dtype=torch.bool)
    mask[1, 12:], mask[2, 5:] = False, False
    return ids.masked_fill(~mask, 0), mask


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def quantised_linears(backbone: Backbone) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in backbone.named_modules() if isinstance(module, QuantizedLinear)}


@pytest.mark.slow
def test_every_matrix_of_the_blocks_is_quantised_and_nothing_else(quantised, whole):
    found = quantised_linears(quantised)
    assert set(found) == {name for name, module in whole.named_modules() if isinstance(module, torch.nn.Linear)}
    rest = {name: tensor for name, tensor in quantised.state_dict().items() if name.rpartition(".")[0] not in found}
    assert {"shared", "head", "encoder.relative_bias.weight", "encoder.final_norm.weight"} <= set(rest)
    for name, tensor in rest.items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


def test_a_matrix_is_near_the_whole_one(quantised, whole):
    modules, bound = dict(whole.named_modules()), BOUNDS[quantised.quantization]
    hidden = torch.randn(5, 3, 64)
    for name, module in quantised_linears(quantised).items():
        plain = modules[name]
        assert isinstance(plain, torch.nn.Linear)
        assert 0 < error(full_weight(module), full_weight(plain)) < bound
        if plain.in_features == hidden.shape[-1]:
            assert_close(module(hidden), hidden @ full_weight(module).T, atol=1e-4, rtol=1e-4)


def test_int8_is_off_by_half_a_step_at_most():
    linear = torch.nn.Linear(7, 3, bias=False).requires_grad_(False)
    linear.weight[1] = 0.0
    found = Int8Linear(linear).full_weight()
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    assert ((found - linear.weight).abs() <= step / 2 + 1e-7).all()
    assert (found[1] == 0).all()


@pytest.fixture(scope="module")
def calm(whole) -> Backbone:
    """Random attention of full strength is all or nothing: a small error, of rounding too, tips it over."""
    calm = copy.deepcopy(whole)
    for module in calm.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.mul_(0.3)
    return calm


@pytest.mark.parametrize("method", METHODS)
def test_taps_and_logits_are_near_the_whole_backbones(calm, method):
    quantised, (ids, mask) = copy.deepcopy(calm), inputs()
    quantize_backbone(quantised, method)
    decoder_ids = torch.randint(3, 250, (3, 4))
    found, expected = quantised.encode(ids, mask), calm.encode(ids, mask)
    for ours, theirs in zip(found.blocks, expected.blocks, strict=True):
        assert 0 < error(ours[mask], theirs[mask]) < BOUNDS[method]
    states = [each.decode(decoder_ids, expected.final, mask).final for each in (quantised, calm)]
    assert 0 < error(quantised.logits(states[0]), calm.logits(states[1])) < BOUNDS[method]


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_does_not_depend_on_the_rows_beside_it(calm, method):
    quantised = copy.deepcopy(calm)
    quantize_backbone(quantised, method)
    rows = [[5, 9, 17], [200] * 12, [44], [100, 3, 60, 61, 62]]
    together = run_backbone(quantised, rows)
    for row, ids in enumerate(rows):
        alone = run_backbone(quantised, [ids])
        for many, one in zip(together.taps.blocks, alone.taps.blocks, strict=True):
            assert_close(many[row, : len(ids)], one[0], atol=1e-4, rtol=1e-4)
        assert_close(together.decoder_taps().final[row], alone.decoder_taps().final[0], atol=1e-4, rtol=1e-4)


def test_matrices_are_the_same_in_bfloat16(folder, quantised):
    loaded = load_backbone(folder, dtype="bfloat16", quantize=quantised.quantization)
    moved, (ids, mask) = copy.deepcopy(quantised).to(torch.bfloat16), inputs()
    for coarse in (loaded, moved):
        assert coarse.dtype == coarse.encode(ids, mask).final.dtype == torch.bfloat16
        for name, module in quantised_linears(coarse).items():
            assert torch.equal(full_weight(module), full_weight(quantised_linears(quantised)[name]))


def test_a_product_in_bfloat16_is_near_the_one_in_float32(quantised):
    hidden = torch.randn(9, 64)
    for module in quantised_linears(quantised).values():
        if module.shape[1] == 64:
            assert error(module(hidden.bfloat16()).float(), module(hidden)) < 0.01


def test_it_pickles_copies_and_loads_its_state(quantised, folder):
    ids, mask = inputs()
    expected = quantised.encode(ids, mask).final
    again = pickle.loads(pickle.dumps(copy.deepcopy(quantised)))
    assert torch.equal(again.encode(ids, mask).final, expected)
    other = load_backbone(folder, quantize=quantised.quantization)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(quantised.state_dict())
    assert torch.equal(other.encode(ids, mask).final, expected)
    with torch.inference_mode():
        assert torch.equal(quantised.encode(ids, mask).final, expected)


def test_its_full_precision_copy_has_plain_weights(quantised, whole):
    plain = full_precision(quantised)
    assert not quantised_linears(plain)
    assert plain.quantization == "none"
    assert {name: p.shape for name, p in plain.named_parameters()} == {
        name: p.shape for name, p in whole.named_parameters()
    }
    assert full_precision(whole) is whole


@pytest.mark.parametrize("method", METHODS)
def test_its_full_precision_copy_computes_the_same(calm, method):
    quantised, (ids, mask) = copy.deepcopy(calm), inputs()
    quantize_backbone(quantised, method)
    plain = full_precision(quantised).encode(ids, mask).final
    assert_close(plain, quantised.encode(ids, mask).final, atol=1e-4, rtol=1e-4)


def test_gradients_pass_through_to_what_goes_in(quantised):
    hidden = torch.randn(2, 64, requires_grad=True)
    linear = next(module for module in quantised_linears(quantised).values() if module.shape[1] == 64)
    linear(hidden).sum().backward()
    assert_close(hidden.grad, full_weight(linear).sum(0).expand(2, -1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [Int8Linear, Nf4Linear])
def test_a_bias_is_kept(kind):
    linear = torch.nn.Linear(BLOCK, 3).requires_grad_(False)
    hidden = torch.randn(4, BLOCK)
    layer = kind(linear)
    assert_close(layer(hidden), hidden @ layer.full_weight().T + linear.bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", families.MAKERS)
def test_every_family_can_be_quantised(family, tmp_path):
    made = families.make(family, tmp_path / family)
    backbone, rows = load_backbone(made, quantize="int8"), [[5, 9, 17], [200, 7, 8, 9, 10]]
    plain = run_backbone(full_precision(backbone), rows)
    found = run_backbone(backbone, rows)
    assert quantised_linears(backbone)
    assert_close(found.taps.blocks, plain.taps.blocks, atol=1e-3, rtol=1e-3)


def test_it_is_smaller_and_has_as_many_weights(quantised, whole):
    assert count_weights(quantised) == count_weights(whole)
    matrices = sum(4 * module.shape.numel() for module in quantised_linears(quantised).values())
    rest = held_bytes(whole) - matrices
    share = {"int8": 0.25, "int4": 4.5 / 32}[quantised.quantization]
    assert rest + share * matrices <= held_bytes(quantised) < rest + (share + 0.02) * matrices


def test_fingerprints_and_names_tell_them_apart(folder, whole):
    each = {method: load_backbone(folder, quantize=method) for method in METHODS}
    fingerprints = {whole.fingerprint, *(backbone.fingerprint for backbone in each.values())}
    assert len(fingerprints) == 3
    assert load_backbone(folder, quantize="none").fingerprint == whole.fingerprint
    for method, backbone in each.items():
        again = load_backbone(folder, dtype="bfloat16", quantize=method)
        assert again.fingerprint == backbone.fingerprint
        assert again.name == f"{whole.name} ({method})"
        assert again.quantization == method


def test_whole_matrices_are_gone_one_by_one(whole, monkeypatch):
    """On a GPU they would be there twice otherwise."""
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watched(linear: torch.nn.Linear) -> Int8Linear:
        seen.append(weakref.ref(linear.weight))
        alive.append(sum(each() is not None for each in seen))
        return Int8Linear(linear)

    monkeypatch.setitem(LINEARS, "int8", watched)
    quantize_backbone(copy.deepcopy(whole), "int8")
    assert len(alive) > 10
    assert set(alive) == {1}


def test_threads_share_it(quantised):
    ids, mask = inputs()
    expected = quantised.encode(ids, mask).final
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: quantised.encode(ids, mask).final, range(16)))
    assert all(torch.equal(each, expected) for each in found)


def test_it_is_not_quantised_twice(quantised):
    with pytest.raises(BackboneError, match="already"):
        quantize_backbone(quantised, "int8")


def test_an_unknown_method_is_refused(folder):
    with pytest.raises(BackboneError, match="quantize must be one of none, int8, int4, w8a8, got 'int3'"):
        load_backbone(folder, quantize="int3")


def test_widths_that_blocks_do_not_divide_are_refused_for_int4_alone(tiny_t5):
    with pytest.raises(BackboneError, match=r"64 divides, and encoder\.blocks\.0\S+ has 32; use int8"):
        load_backbone(tiny_t5, quantize="int4")
    assert load_backbone(tiny_t5, quantize="int8").quantization == "int8"


def test_a_missing_library_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_method("int8")
    with pytest.raises(BackboneError, match=r"pip install 'sidecast\[quantized\]'"):
        check_method("int4")


def test_a_library_that_does_not_work_here_is_told_in_one_line(monkeypatch, folder):
    import bitsandbytes.functional as functional

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("\n no kernel for this device\nmany\nmore\nlines")

    monkeypatch.setattr(functional, "quantize_4bit", fail)
    with pytest.raises(BackboneError, match=r"^int4 does not work on this device: no kernel for this device$"):
        load_backbone(folder, quantize="int4")
