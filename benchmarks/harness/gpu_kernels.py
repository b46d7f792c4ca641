"""What autograd saves on a GPU, counted without one: torch's fused kernels for dropout and attention.

On a GPU dropout keeps a bool of each number, where a CPU keeps a float32. Attention keeps its inputs, its result and
one number for each query, where a CPU keeps the scores. For tensors without data (`FakeTensorMode`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Dropout and attention are those of a GPU inside the `with` block, also in side networks."""
    with patch("ladder.backbone.layers.lean_attention", _attention), _GpuKernels():
        yield


class _GpuKernels(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **named)
        if func is F.scaled_dot_product_attention:
            query, keys, values = args
            return _attention(query, keys, values, named["attn_mask"], dropout=named["dropout_p"], scale=named["scale"])
        return func(*args, **named)


def _dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(values, p, True)[0] if training and p else values


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, *, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    bias = bias.expand(*query.shape[:-1], keys.shape[-2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, keys, values, bias, True, dropout, False, scale=scale)[0]
