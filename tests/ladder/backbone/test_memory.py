"""The estimate of a pass's memory, compared with what a pass allocates."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ladder import load_backbone, run_backbone
from ladder.backbone import pass_bytes


class Allocations(TorchDispatchMode):
    """Bytes of the tensors that are made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(made)[0]:
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._known:
            return
        self._known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


@pytest.mark.parametrize(("rows", "tokens"), [(1, 600), (3, 400), (64, 16)])
def test_a_pass_needs_about_what_is_estimated(tiny_t5: Path, rows: int, tokens: int) -> None:
    backbone = load_backbone(tiny_t5, dtype="float32")
    with torch.inference_mode(False), torch.no_grad(), Allocations() as made:
        run_backbone(backbone, [[5] * tokens] * rows)
    estimate = pass_bytes(backbone.config, rows, tokens, 4)
    assert made.peak / 2 < estimate < 3 * made.peak
