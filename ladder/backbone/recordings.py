"""Functions of tensors, recorded once for a shape and replayed: on a GPU one launch instead of hundreds.

A recording reads and writes memory of its own. Arguments are copied there; what it returns is overwritten by the next
replay of any recording of the same recorder, so whoever keeps it copies it. Knows no model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Values = tuple[Tensor, ...]
Compute = Callable[[], Values]
"""Reads tensors that stay where they are; makes none of data on another device."""
Replay = Callable[[], object]
"""Computes again, into the same results."""

WARM_UPS = 3
"""Calls before a recording: libraries choose their kernels, and tables are made."""


class Recorder(Protocol):
    """Makes recordings, which are replayed one at a time, on one thread."""

    def record(self, compute: Compute) -> tuple[Replay, Values]:
        """Record a call; return what replays it, and its results."""
        ...


class CudaGraphs:
    """CUDA graphs on one device, which share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Compute) -> tuple[Replay, Values]:
        """As `Recorder.record`. Other threads may use the device meanwhile."""
        current, aside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                compute()
        current.wait_stream(aside)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = compute()
        return graph.replay, results


class Rehearsal:
    """Computes again instead of a replay, into the same memory: to try on a CPU what is recorded on a GPU."""

    def record(self, compute: Compute) -> tuple[Replay, Values]:
        """As `Recorder.record`."""
        results = tuple(value.clone() for value in compute())

        def replay() -> None:
            for result, value in zip(results, compute(), strict=True):
                result.copy_(value)

        return replay, results


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded shape."""

    inputs: Values
    """Fixed memory that the recording reads."""
    compute: Callable[..., Values]
    """Held, because a CUDA graph does not hold what it reads."""
    replay: Replay
    results: Values

    @classmethod
    def of(cls, recorder: Recorder, compute: Callable[..., Values], inputs: Values) -> "Recording":
        """Record `compute(*inputs)`."""
        return cls(inputs, compute, *recorder.record(lambda: compute(*inputs)))

    def run(self, arguments: Sequence[Tensor]) -> Values:
        """Compute for `arguments`, each at most as large as its input; zeros are around it. Copy what you keep."""
        for fixed, given in zip(self.inputs, arguments, strict=True):
            fill(fixed, given)
        self.replay()
        return self.results


def fill(fixed: Tensor, given: Tensor) -> None:
    """Copy `given` into the first rows and columns of `fixed`, and zeros into the others."""
    if fixed.shape != given.shape:
        fixed.zero_()
    fixed[tuple(slice(size) for size in given.shape)].copy_(given)
