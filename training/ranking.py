"""How well embeddings find their partners: the rank of each row's own target among all distinct targets of a file.

Knows texts and vectors: no tasks, files or models.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

CHUNK = 1024
"""Rows whose similarities are in memory together."""


def ranks(pairs: Sequence[tuple[str, str]], vectors: Sequence[Sequence[float]]) -> list[int]:
    """For each pair, 1 where its own target is the nearest to its text, 2 where one other is as near or nearer ...

    No wrong answers, so not counted: the text itself, and the targets that the same text has in other pairs.

    Args:
        pairs: a text and its target.
        vectors: of length 1; the texts', in the pairs' order, and then each distinct target's, in order of appearance.
    """
    candidates = {text: place for place, text in enumerate(dict.fromkeys(target for _, target in pairs))}
    right: defaultdict[str, set[int]] = defaultdict(set)
    for text, target in pairs:
        right[text] |= {candidates[target], candidates.get(text, candidates[target])}
    matrix = np.asarray(vectors, np.float32)
    texts, targets = matrix[: len(pairs)], matrix[len(pairs) :]
    found: list[int] = []
    for start in range(0, len(pairs), CHUNK):
        similarities = texts[start : start + CHUNK] @ targets.T
        for (text, target), row in zip(pairs[start : start + CHUNK], similarities, strict=True):
            own = row[candidates[target]]
            row[list(right[text])] = -np.inf
            found.append(1 + int(np.count_nonzero(row >= own)))
    return found
