"""Scores of rankings: NDCG by scikit-learn and the mean reciprocal rank, over the passages of each query."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from training.errors import MetricError

CUT = 10
"""Best passages that count."""


class Ranked(NamedTuple):
    """The passages of one query."""

    scores: tuple[float, ...]
    relevances: tuple[float, ...]


def by_query(queries: Sequence[str], scores: Sequence[float], relevances: Sequence[float]) -> list[Ranked]:
    """The passages of each query together, of three sequences of the same length.

    Queries whose passages are all equally relevant are left out: no order of them is better than another.
    """
    indices: defaultdict[str, list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        indices[query].append(index)
    grouped = (
        Ranked(tuple(scores[index] for index in rows), tuple(relevances[index] for index in rows))
        for rows in indices.values()
    )
    return [ranked for ranked in grouped if len(set(ranked.relevances)) > 1]


def ranking_scores(queries: Sequence[Ranked]) -> dict[str, np.ndarray]:
    """The scores of each query, (Q,).

    NDCG takes the relevance itself as the gain; of passages with equal scores every order counts as much. The
    reciprocal rank is that of the first passage whose relevance is above 0; passages with its score that are not
    relevant come before it.

    Raises:
        MetricError: there is no query.
    """
    from sklearn.metrics import ndcg_score  # it takes a second to import

    if not queries:
        raise MetricError("ndcg_at_10", "no query has passages that differ in relevance; give more rows of each query")
    return {
        "ndcg_at_10": np.asarray([ndcg_score([ranked.relevances], [ranked.scores], k=CUT) for ranked in queries]),
        "mrr_at_10": np.asarray([_reciprocal_rank(ranked) for ranked in queries]),
    }


def _reciprocal_rank(ranked: Ranked) -> float:
    scores = np.asarray(ranked.scores)
    relevant = np.asarray(ranked.relevances) > 0
    rank = 1 + int(np.count_nonzero(scores[~relevant] >= scores[relevant].max()))
    return 1 / rank if rank <= CUT else 0.0
