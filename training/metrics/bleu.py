"""BLEU-4 of a whole file of captions, by the library sacrebleu."""

from collections.abc import Sequence
from itertools import zip_longest

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
