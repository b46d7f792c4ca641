"""Labels as texts of the decoder: a trie of token ids, scored at its branches.

P(label) is the product, over the branches on its path, of the softmax among the tokens that may follow there. That is
the distribution of decoding constrained to the labels. Where all first tokens differ, one decoder step is enough.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladder.errors import LabelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A point where labels differ in the next token."""

    prefix: tuple[int, ...]
    tokens: tuple[int, ...]
    """What may follow the prefix."""
    labels: tuple[tuple[int, ...], ...]
    """For each of `tokens`, the labels (indices) that go on with it."""


@dataclass(frozen=True, slots=True)
class LabelTrie:
    """Made from each label's token ids, with the end token, so that no label is a prefix of another."""

    labels: tuple[tuple[int, ...], ...]
    branches: tuple[Branch, ...] = field(init=False)

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels):
            raise LabelError("two labels have the same tokens for this backbone: rename one of them")
        object.__setattr__(self, "branches", tuple(_branches(self.labels, tuple(range(len(self.labels))), 0)))

    def log_probabilities(self, logits_after: Callable[[tuple[int, ...], tuple[int, ...]], Tensor]) -> Tensor:
        """Compute the log probabilities of the labels, (B, K).

        Args:
            logits_after: takes a prefix and N tokens, returns the logits (B, N) of each token after that prefix.
        """
        total: Tensor | None = None
        for branch in self.branches:
            steps = torch.log_softmax(logits_after(branch.prefix, branch.tokens).float(), -1)
            if total is None:
                total = steps.new_zeros(steps.shape[0], len(self.labels))
            for column, members in enumerate(branch.labels):
                index = torch.tensor(members, device=steps.device)
                total = total.index_add(1, index, steps[:, column : column + 1].expand(-1, len(members)))
        assert total is not None
        return total


def _branches(labels: Sequence[tuple[int, ...]], members: tuple[int, ...], depth: int) -> list[Branch]:
    follow: dict[int, list[int]] = {}
    for label in members:
        if depth < len(labels[label]):
            follow.setdefault(labels[label][depth], []).append(label)
    below = [b for group in follow.values() if len(group) > 1 for b in _branches(labels, tuple(group), depth + 1)]
    if len(follow) < 2:
        return below
    prefix = labels[members[0]][:depth]
    here = Branch(prefix=prefix, tokens=tuple(follow), labels=tuple(tuple(group) for group in follow.values()))
    return [here, *below]
