"""One run on several processes, each with a device of its own: accelerate connects them, and sums what they compute.

Each process has its own rows, in every step and every epoch, so that it reads the backbone's activations of these
alone. The gradients of a step are summed, so all take the same step. The first process validates and writes the run
folder. `accelerate launch` and `torchrun` start the processes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""The others wait so long while the first process validates; if it ends, its launcher ends them."""


class Processes:
    """The processes of a run, as one of them sees them. This one is alone."""

    count = 1
    index = 0

    @property
    def is_first(self) -> bool:
        """Whether this one validates and writes."""
        return self.index == 0

    def own(self, rows: Sequence[int]) -> list[int]:
        """Those of some rows, by their indices in the file, that this process computes."""
        return [row for row in rows if row % self.count == self.index]

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """What is within is done by the first process, and then by the others."""
        yield

    def from_first(self, value: T) -> T:
        """The value that the first process gave."""
        return value

    def wait(self) -> None:
        """Go on when all processes are here."""

    def sum_gradients(self, module: nn.Module, loss: float) -> float:
        """Sum the gradients that the processes' modules hold, in place. Return the sum of their losses."""
        return loss


ALONE = Processes()


class JoinedProcesses(Processes):
    """One of several."""

    def __init__(self, state: Any) -> None:
        """`state`: accelerate's PartialState."""
        self._state = state
        self.count = state.num_processes
        self.index = state.process_index

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """As of `Processes`."""
        with self._state.main_process_first():
            yield

    def from_first(self, value: T) -> T:
        """As of `Processes`; the value can be pickled."""
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """As of `Processes`."""
        self._state.wait_for_everyone()

    def sum_gradients(self, module: nn.Module, loss: float) -> float:
        """As of `Processes`. A parameter that no process has a gradient of keeps none."""
        from accelerate.utils import reduce

        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        device = trained[0].device
        told = torch.tensor([loss, *(float(parameter.grad is not None) for parameter in trained)], device=device)
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        flat: Any = reduce(torch.cat([told, *(part.float().flatten() for part in parts)]), reduction="sum")
        sums: Sequence[Tensor] = flat[len(told) :].split([one.numel() for one in trained])
        for parameter, has_gradient, total in zip(trained, flat[1 : len(told)].tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if has_gradient else None
        return float(flat[0])


def join_processes(device: str) -> tuple[Processes, str]:
    """The processes that this one was started with, and its device.

    Args:
        device: as `--device` has it; alone it stays as it is.

    Raises:
        ModuleNotFoundError: there are several, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE, device
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    return JoinedProcesses(state), str(state.device)
