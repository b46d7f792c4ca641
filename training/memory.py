"""What a training step holds, counted in bytes: exact, the same in every run, and without a GPU.

The count has four parts, which are all there when a forward pass ends (gradients are those of the step before, until
`zero_grad`):

- parameters: the modules' parameters and buffers, frozen ones too;
- gradients: of these parameters, when the optimizer's step begins;
- optimizer: its state after the step;
- saved: the most that autograd held at any time for the backward pass, but for what is a parameter or a buffer.

A storage counts once, whole, however many tensors are views of it. Not counted: temporary results that autograd does
not save, a kernel's workspace, an allocator's rounding and fragmentation, and the batch itself where no gradient needs
it. `torch.cuda.max_memory_allocated` has these, and is reported too if a module is on a GPU.

Tensors without data (`FakeTensorMode`, the meta device) are counted as real ones: so shapes that are too large for
a machine can be counted there.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@dataclass(slots=True, kw_only=True)
class MemoryReport:
    """Bytes that a training step holds; see this module's docstring. All 0 until `count_memory` ends."""

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    saved: int = 0
    cuda_peak: int | None = None
    """Most bytes that torch allocated on the modules' GPU meanwhile; None on other devices."""

    @property
    def total(self) -> int:
        """The four parts together."""
        return self.parameters + self.gradients + self.optimizer + self.saved


@contextmanager
def count_memory(
    modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> Iterator[MemoryReport]:
    """Count what the training steps inside the `with` block hold at most.

        with count_memory([backbone, side], optimizer) as report:
            loss = answerer.loss(backbone_pass, side, targets)
            update(side, optimizer, loss, rate, clip)
        print(report.total)

    Results and gradients stay bit-equal.

    Args:
        modules: all that take part, frozen ones too; on one device.
        optimizer: None: nothing is updated, and gradients are counted at the end of the block.

    Returns:
        A report that is complete when the block ends without an error.
    """
    held = list(modules)
    own = [tensor for module in held for tensor in (*module.parameters(), *module.buffers())]
    device = own[0].device if own else torch.device("cpu")
    saved = SavedTensors(own)
    report = MemoryReport()

    def count_gradients(*_: object) -> None:
        gradients = [tensor.grad for tensor in own if tensor.grad is not None]
        report.gradients = max(report.gradients, storage_bytes(gradients))

    before_step = None if optimizer is None else optimizer.register_step_pre_hook(count_gradients)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with saved_tensors_hooks(saved.pack, saved.unpack):
            yield report
    finally:
        if before_step is not None:
            before_step.remove()
    count_gradients()
    report.parameters = storage_bytes(own)
    report.saved = saved.peak
    if optimizer is not None:
        values = [value for state in optimizer.state.values() for value in state.values()]
        report.optimizer = storage_bytes(value for value in values if isinstance(value, Tensor))
    if device.type == "cuda":
        report.cuda_peak = torch.cuda.max_memory_allocated(device)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors' storages, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors]  # kept, so that no address is used twice
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


class SavedTensors:
    """The storages that autograd holds now, and the most bytes that it held."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        """Storages of `parameters` are not counted. They must outlive this object."""
        self.peak = 0
        """May be set to 0 between steps, when nothing is held."""
        self._held = 0
        self._users: dict[int, int] = {}
        self._excluded = {tensor.untyped_storage()._cdata for tensor in parameters}

    def pack(self, tensor: Tensor) -> "_Saved":
        """Count a tensor that autograd saves."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._excluded:
            return _Saved(tensor, None)
        users = self._users.get(storage._cdata, 0)
        self._users[storage._cdata] = users + 1
        if not users:
            self._held += storage.nbytes()
            self.peak = max(self.peak, self._held)
        return _Saved(tensor, self)

    def unpack(self, saved: "_Saved") -> Tensor:
        """The tensor, for the backward pass."""
        return saved.tensor

    def release(self, tensor: Tensor) -> None:
        """Count a tensor no more."""
        storage = tensor.untyped_storage()
        self._users[storage._cdata] -= 1
        if not self._users[storage._cdata]:
            del self._users[storage._cdata]
            self._held -= storage.nbytes()


class _Saved:
    """One saved tensor; autograd drops it when the backward pass has used it."""

    def __init__(self, tensor: Tensor, counter: SavedTensors | None) -> None:
        self.tensor = tensor
        self._counter = counter

    def __del__(self) -> None:
        if self._counter is not None:
            self._counter.release(self.tensor)
