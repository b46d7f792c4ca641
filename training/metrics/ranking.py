"""Ranks of an embedding's targets, and their scores."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.errors import MetricError

CHUNK = 1024
"""Rows whose similarities are in memory together."""


def recall_and_mrr(target_ranks: Sequence[Any] | np.ndarray) -> tuple[float, float]:
    """The share of rows whose own target ranks first, and the mean reciprocal rank.

    Raises:
        MetricError: a rank below 1.
    """
    counted = np.asarray(target_ranks, dtype=np.float64)
    if not (counted >= 1).all():
        raise MetricError("recall_at_1", f"ranks start at 1, got {counted.min():g}")
    return float(np.mean(counted == 1)), float(np.mean(1 / counted))


def ranks(pairs: Sequence[tuple[str, str]], vectors: Sequence[Sequence[float]]) -> list[int]:
    """Rank each pair's own target among all distinct targets, by how near it is to the pair's text.

    1 where it is the nearest, 2 where one other is as near or nearer, and so on. Two kinds of targets are no wrong
    answers, so not counted: the text itself, and the targets that the same text has in other pairs.

    Args:
        pairs: N texts, each with its target.
        vectors: of length 1; the texts', in the pairs' order, and then each distinct target's, in order of appearance.
    Returns:
        N ranks from 1.
    """
    candidates = {text: index for index, text in enumerate(dict.fromkeys(target for _, target in pairs))}
    right: defaultdict[str, set[int]] = defaultdict(set)
    for text, target in pairs:
        right[text] |= {candidates[target], candidates.get(text, candidates[target])}
    matrix = np.asarray(vectors, np.float32)
    texts = matrix[: len(pairs)]
    targets = matrix[len(pairs) :]
    target_ranks: list[int] = []
    for start in range(0, len(pairs), CHUNK):
        similarities = texts[start : start + CHUNK] @ targets.T
        for (text, target), row in zip(pairs[start : start + CHUNK], similarities, strict=True):
            similarity = row[candidates[target]]
            row[list(right[text])] = -np.inf
            target_ranks.append(1 + int(np.count_nonzero(row >= similarity)))
    return target_ranks
