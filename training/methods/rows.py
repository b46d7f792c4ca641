"""The rows of one part of the data as tensors: token ids, the texts of a pair, targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ladder import Backbone, Tokenizer
from ladder.backbone.passes import padded
from ladder.side.pairs import pair_tensor
from side_registry.specs.task import TaskSpec
from training.batches import TokenizedRow, target_tensor, tokenize
from training.data import Labelled


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model reads of some rows."""

    ids: Tensor
    """(B, S) token ids."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    pairs: Tensor | None
    """(B, 2, 2), see `ladder.Taps.pairs`; None for a task that has not two texts."""


class Rows:
    """Tokenized examples, cut into batches on demand."""

    def __init__(self, spec: TaskSpec, backbone: Backbone, tokenizer: Tokenizer, part: Labelled) -> None:
        self.spec = spec
        self.examples = part.examples
        self.tokens: list[TokenizedRow] = tokenize(spec, tokenizer, part.examples)
        self._backbone = backbone

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows with these indices, padded to the longest of them."""
        ids, mask = padded(self._backbone, [self.tokens[index].inputs[0] for index in indices])
        pairs = pair_tensor([self.tokens[index].pair for index in indices], ids.device) if self.spec.has_pair else None
        return Batch(ids, mask, pairs)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(B,) label indices, or values."""
        return target_tensor(self.spec, [self.tokens[index] for index in indices], self._backbone.device)

    @property
    def token_count(self) -> int:
        """Tokens of all rows, without padding."""
        return sum(row.length for row in self.tokens)


def values_of(rows: Rows) -> Tensor:
    """All targets of a regression, (N,)."""
    return torch.tensor([float(example.target) for example in rows.examples])
