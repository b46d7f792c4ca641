"""Rows of tensors by their numbers, without a copy where they are adjacent."""

from collections.abc import Sequence

import torch
from torch import Tensor


def adjacent(rows: Sequence[int]) -> int | None:
    """The first of rows that are consecutive numbers; None where they are not."""
    first = rows[0]
    return first if list(rows) == list(range(first, first + len(rows))) else None


def take(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Take some rows, at least one; a view where they are adjacent."""
    first = adjacent(rows)
    if first is not None:
        return tensor[first : first + len(rows)]
    return tensor.index_select(0, torch.tensor(rows, device=tensor.device))
