"""Our code and transformers' in float64, where a difference is one of the formulas on every kind of CPU.

In float32 both round, in an order that is the kernel's, and a deep random network makes a few units of the last place
large: a bound that is tight on one CPU fails on another.
"""

import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5LayerNorm


def use_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a tensor to float32 for the sake of precision takes it to float64 instead, until the test ends.

    Weights and inputs must be float64 already.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(T5LayerNorm, "forward", _norm)


def _norm(self: T5LayerNorm, hidden: Tensor) -> Tensor:
    """As theirs, but for `.to(torch.float32)`."""
    scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (hidden * scale)
