"""Lean attention: torch's result and gradients, with less kept for the backward pass."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ladder.backbone.lean_attention import lean_attention
from training.memory import count_memory

ROWS, HEADS, QUERIES, TOKENS, WIDTH = 2, 3, 5, 7, 4


def inputs(bias_rows: int) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, QUERIES, HEADS, WIDTH, generator=random).transpose(1, 2).requires_grad_()
    keys, values = (
        torch.randn(ROWS, TOKENS, HEADS, WIDTH, generator=random).transpose(1, 2).requires_grad_() for _ in range(2)
    )
    return query, keys, values, torch.randn(bias_rows, HEADS, QUERIES, TOKENS, generator=random).requires_grad_()


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias_rows", [1, ROWS])
def test_result_and_gradients_equal_torchs_own_attention(scale, dropout, bias_rows):
    query, keys, values, bias = tensors = inputs(bias_rows)
    torch.manual_seed(1)
    lean = lean_attention(query, keys, values, bias, dropout=dropout, scale=scale)
    torch.manual_seed(1)
    plain = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, dropout_p=dropout, scale=scale)
    torch.testing.assert_close(lean, plain)
    gradients = torch.autograd.grad(lean.square().sum(), tensors)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain.square().sum(), tensors))


def test_a_bias_that_learns_nothing_gets_no_gradient():
    query, keys, values, bias = inputs(1)
    lean_attention(query, keys, values, bias.detach()).sum().backward()
    assert query.grad is not None
    assert bias.grad is None


def test_it_keeps_a_bool_of_each_score():
    query, keys, values, bias = tensors = inputs(1)
    with count_memory([]) as report:
        lean_attention(query, keys, values, bias, dropout=0.1).sum().backward()
    assert report.saved == sum(tensor.nbytes for tensor in tensors) + ROWS * HEADS * QUERIES * TOKENS
