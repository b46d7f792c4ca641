"""BLEU-4 of a whole file of captions, by the library sacrebleu."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from training.metrics.caption_words import caption_words


def bleu(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> float:
    """0 to 1, not smoothed: 0 where no four words in a row are right in any text.

    The words are those of `caption_words`, not sacrebleu's, as in the COCO evaluation.
    """
    from sacrebleu.metrics.bleu import BLEU

    texts = [" ".join(caption_words(prediction)) for prediction in predictions]
    words = [[" ".join(caption_words(reference)) for reference in row] for row in references]
    by_place = list(zip_longest(*words))  # sacrebleu takes all first references, then all second ones, or None
    scorer = BLEU(tokenize="none", smooth_method="none", force=True)
    return scorer.corpus_score(texts, by_place).score / 100


def bleu_statistics(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> np.ndarray:
    """What BLEU is computed from, for each row: (N, 10): words, words of the reference that is nearest in length, right
    n-grams of 1 to 4 words, and all n-grams of the prediction."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(tokenize="none", smooth_method="none", force=True, effective_order=True)
    rows: list[list[int]] = []
    for prediction, row in zip(predictions, references, strict=True):
        words = " ".join(caption_words(prediction))
        found = scorer.sentence_score(words, [" ".join(caption_words(reference)) for reference in row])
        rows.append([found.sys_len, found.ref_len, *found.counts, *found.totals])
    return np.asarray(rows)


def bleu_of_statistics(statistics: np.ndarray) -> float:
    """BLEU of rows whose `bleu_statistics` sum to these (10,)."""
    from sacrebleu.metrics.bleu import BLEU

    length, reference_length, *counts = statistics.tolist()
    return BLEU.compute_bleu(counts[:4], counts[4:], length, reference_length, smooth_method="none").score / 100
