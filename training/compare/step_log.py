"""Bytes and seconds of every training step, taken while a model is trained."""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from training.memory import SavedTensors, storage_bytes

PERCENTILE = 99


class StepLog:
    """Counts the steps of one optimizer inside a `with` block.

    On a CPU a step's bytes are those of `training.memory`: parameters, gradients, the optimizer's state, and the most
    that autograd held in the step. They are exact and the same in every run. On a GPU they are
    `torch.cuda.max_memory_allocated` of the step.
    """

    def __init__(self, tensors: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Nothing is counted yet.

        Args:
            tensors: parameters and buffers of all modules that take part, frozen ones too; on one device.
        """
        self.bytes: list[int] = []
        """Of each step."""
        self.marks: list[float] = []
        """`time.monotonic` at the end of each step."""
        self._own = list(tensors)
        self._optimizer = optimizer
        self._device = self._own[0].device
        self._parameters = storage_bytes(self._own)
        self._saved = SavedTensors(self._own)
        self._hooks = saved_tensors_hooks(self._saved.pack, self._saved.unpack)
        self._after_step = optimizer.register_step_post_hook(self._count)

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._after_step.remove()

    @property
    def peak(self) -> int:
        """Bytes of the largest step; 0 without steps."""
        return max(self.bytes, default=0)

    @property
    def high(self) -> int:
        """The 99th percentile of the steps' bytes; 0 without steps."""
        return int(np.percentile(self.bytes, PERCENTILE)) if self.bytes else 0

    @property
    def mean(self) -> int:
        """Of the steps' bytes; 0 without steps."""
        return sum(self.bytes) // len(self.bytes) if self.bytes else 0

    @property
    def seconds(self) -> float | None:
        """The median time from the end of one step to the end of the next; None with fewer than two steps."""
        return float(np.median(np.diff(self.marks))) if len(self.marks) > 1 else None

    def _count(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.bytes.append(torch.cuda.max_memory_allocated(self._device))
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            gradients = [tensor.grad for tensor in self._own if tensor.grad is not None]
            values = [value for state in self._optimizer.state.values() for value in state.values()]
            state = [value for value in values if isinstance(value, Tensor)]
            self.bytes.append(self._parameters + storage_bytes(gradients) + storage_bytes(state) + self._saved.peak)
            self._saved.peak = 0
        self.marks.append(time.monotonic())
