"""Bytes of all tensors that exist: a second way to measure a step, with the temporary results that `training.memory`
leaves out. Sees every operation's result; not a kernel's own workspace.
"""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """While entered, follows the storages of all tensors that operations make, until they are freed."""

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        """`before`: tensors that exist already."""
        super().__init__()
        self.now = 0
        """Bytes that exist now."""
        self.peak = 0
        """Most bytes that existed at any time."""
        self._storages: dict[int, weakref.finalize[..., Any]] = {}
        for tensor in before:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and add its results."""
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._add(result)
        return results

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.finalize(storage, self._remove, key, storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int) -> None:
        del self._storages[key]
        self.now -= size
