"""CIDEr-D: how alike a caption and its references are in n-grams, those counting most that few images have.

Vedantam et al., 2015, as pycocoevalcap computes it: the cosines of tf-idf vectors of 1- to 4-grams, clipped, with a
penalty for other lengths; document frequencies are those of the references that are scored against.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from training.metrics.caption_words import caption_words

LONGEST = 4
"""Words in the longest n-grams."""
SIGMA = 6.0
"""Of the penalty for another length, in bigrams."""
SCALE = 10.0

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Vector:
    weights: tuple[dict[Gram, float], ...]
    """Of the n-grams of each length."""
    norms: tuple[float, ...]
    bigrams: int


def cider(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> float:
    """The mean over the rows, 0 to 10; papers print 100 times it.

    A score depends on all rows' references: compare scores of the same file only. One row alone gets 0, since all of
    its n-grams are in every row.
    """
    scores = cider_rows(predictions, references)
    return math.fsum(scores) / len(scores)


def cider_rows(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> list[float]:
    """The score of each row, with the document frequencies of all rows."""
    counted = [[_grams(reference) for reference in row] for row in references]
    frequencies = Counter(chain.from_iterable(set(chain.from_iterable(row)) for row in counted))
    rows = math.log(len(references))
    return [
        _row(_vector(_grams(prediction), frequencies, rows), (_vector(grams, frequencies, rows) for grams in row))
        for prediction, row in zip(predictions, counted, strict=True)
    ]


def _grams(text: str) -> Counter[Gram]:
    words = caption_words(text)
    return Counter(
        tuple(words[start : start + size]) for size in range(1, LONGEST + 1) for start in range(len(words) - size + 1)
    )


def _vector(grams: Counter[Gram], frequencies: Counter[Gram], log_rows: float) -> _Vector:
    weights: tuple[dict[Gram, float], ...] = tuple({} for _ in range(LONGEST))
    for gram, count in grams.items():
        weights[len(gram) - 1][gram] = count * (log_rows - math.log(max(1, frequencies[gram])))
    norms = tuple(math.sqrt(sum(weight**2 for weight in each.values())) for each in weights)
    return _Vector(weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2))


def _row(prediction: _Vector, references: Iterable[_Vector]) -> float:
    alike = [_similarity(prediction, reference) for reference in references]
    return SCALE * sum(alike) / len(alike)


def _similarity(prediction: _Vector, reference: _Vector) -> float:
    """The mean of the cosines over the lengths of n-grams, times the penalty."""
    total = 0.0
    for ours, theirs, norm, other_norm in zip(
        prediction.weights, reference.weights, prediction.norms, reference.norms, strict=True
    ):
        if norm and other_norm:
            product = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
            total += product / (norm * other_norm)
    return total / LONGEST * math.exp(-((prediction.bigrams - reference.bigrams) ** 2) / (2 * SIGMA**2))
