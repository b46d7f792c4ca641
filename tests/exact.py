"""Our code and transformers' in float64, where a difference is one of the formulas on every kind of CPU.

In float32 both round in an order that is the kernel's, and a deep random network makes much of the last bits: a bound
that is tight on one CPU fails on another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

CLOSE = {"atol": 1e-8, "rtol": 1e-8}
"""Far above what float64 rounds by (1e-16 of a number), far below what a wrong formula changes."""


@contextmanager
def float64() -> Iterator[None]:
    """What takes a tensor to float32 for the sake of precision takes it to float64 instead.

    Weights and inputs must be float64 already.
    """
    with patch.object(Tensor, "float", Tensor.double), patch.object(Tensor, "to", _to):
        yield


def _to(self: Tensor, *where: Any, **how: Any) -> Tensor:
    wide = [torch.float64 if each is torch.float32 else each for each in where]
    if how.get("dtype") is torch.float32:
        how["dtype"] = torch.float64
    return super(Tensor, self).to(*wide, **how)
