"""Runs our code and transformers' in float64, where a difference means a different formula on every CPU.

In float32 the order of rounding depends on the kernel, and a deep random network amplifies the last bits: a tight bound
that holds on one CPU fails on another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

CLOSE = {"atol": 1e-8, "rtol": 1e-8}
"""Far above the rounding of float64 (1e-16 of a number), far below the effect of a wrong formula."""


@contextmanager
def float64() -> Iterator[None]:
    """Make conversions of tensors to float32 convert to float64 instead.

    Weights and inputs must be float64 already.
    """
    with patch.object(Tensor, "float", Tensor.double), patch.object(Tensor, "to", _to):
        yield


def _to(self: Tensor, *where: Any, **how: Any) -> Tensor:
    wide = [torch.float64 if argument is torch.float32 else argument for argument in where]
    if how.get("dtype") is torch.float32:
        how["dtype"] = torch.float64
    return super(Tensor, self).to(*wide, **how)
