"""Beam search of transformers 4.6 for one row, slow and obvious: lists, no cache, no batch.

What the LST authors' goldens were made with (generation_beam_search.py, BeamSearchScorer and BeamHypotheses).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Text = list[int]


def beam_search(
    logits: Callable[[Tensor], Tensor],
    *,
    beams: int,
    limit: int,
    start: int,
    end: int,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
) -> Text:
    """The best text without start and end tokens. `logits` takes (W, T) tokens and returns (W, V)."""
    texts, scores, kept = [[start]] * beams, [0.0] + [-1e9] * (beams - 1), []

    def keep(text: Text, score: float) -> None:
        kept.append((score / len(text) ** length_penalty, text))
        kept.sort(key=lambda hypothesis: -hypothesis[0])
        del kept[beams:]

    for length in range(1, limit + 1):
        totals = logits(torch.tensor(texts)).log_softmax(-1) + torch.tensor(scores)[:, None]
        best, indices = totals.flatten().topk(2 * beams)
        going_on: list[tuple[Text, float]] = []
        for rank, (score, index) in enumerate(zip(best.tolist(), indices.tolist(), strict=True)):
            parent, token = divmod(index, totals.shape[1])
            if token != end:
                going_on.append(([*texts[parent], token], score))
            elif rank < beams:
                keep(texts[parent], score)
        if len(kept) == beams and (early_stopping or kept[-1][0] >= float(best[0]) / length**length_penalty):
            return kept[0][1][1:]
        texts, scores = [list(column) for column in zip(*going_on[:beams], strict=True)]
    for text, score in zip(texts, scores, strict=True):
        keep(text, score)
    return kept[0][1][1:]
