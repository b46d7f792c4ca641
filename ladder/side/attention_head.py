"""A head that attends to tokens: learned queries say which tokens of the side encoder a linear layer reads."""

import torch
from torch import Tensor, nn

from ladder.errors import InputsError
from ladder.side.pairs import NO_PAIRS, PARTS, pair_features, tokens_inside

QUERIES = 4
"""Learned queries. Each has an attention of its own over the tokens."""


class AttentionHead(nn.Module):
    """A linear layer on what each query finds, in one text or in each of two.

    A token's weight is the softmax of its product with the query, over the real tokens of a text.
    """

    def __init__(self, width: int, outputs: int, *, pair: bool) -> None:
        super().__init__()
        self.pair = pair
        self.queries = nn.Linear(width, QUERIES, bias=False)
        self.out = nn.Linear(QUERIES * width * (PARTS if pair else 1), outputs)

    def forward(self, state: Tensor, inside: Tensor) -> Tensor:
        """(B, S, d) to (B, outputs), in float32; `inside` as `attended`'s, of two texts with `pair`."""
        state = state.float()
        found = attended(state, self.queries(state), inside)
        return self.out(attention_features(found, pair=self.pair))


def texts_of(pair: bool, tokens: int, mask: Tensor, pairs: Tensor | None) -> Tensor:
    """Return which of S `tokens` belong to each text that a head reads: (B, 1, S) bool or, of a pair, (B, 2, S).

    Args:
        mask: (B, S) bool, True at real tokens.
        pairs: (B, 2, 2), see `Taps.pairs`.

    Raises:
        InputsError: of a pair, and no pairs.
    """
    if not pair:
        return mask[:, None]
    if pairs is None:
        raise InputsError(NO_PAIRS)
    return tokens_inside(pairs, tokens)


def attended(state: Tensor, scores: Tensor, inside: Tensor) -> Tensor:
    """Return what each query finds in each text: (B, texts, queries, d). Zeros for a text without tokens.

    Args:
        state: (B, S, d) in float32.
        scores: (B, S, queries), of each token for each query.
        inside: (B, texts, S) bool, True at the tokens of each text.
    """
    of_texts = inside[:, :, None]  # (B, texts, 1, S)
    masked = scores.transpose(1, 2)[:, None].masked_fill(~of_texts, torch.finfo(scores.dtype).min)
    weights = torch.softmax(masked, -1) * of_texts
    return (weights.flatten(1, 2) @ state).unflatten(1, weights.shape[1:3])


def attention_features(found: Tensor, *, pair: bool) -> Tensor:
    """Return what the linear layer reads of `attended`'s result: all of it or, of a pair, how two texts compare."""
    return pair_features(found.flatten(2)) if pair else found.flatten(1)
