"""ROUGE-L: how much of a text is in the same order in a reference (Lin, 2004)."""

from collections.abc import Sequence

from training.metrics.caption_words import caption_words


def rouge_l(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> float:
    """The mean over the rows of the best reference's F1, 0 to 1.

    F1 as in Google's rouge-score (`rougeL`, without stemming), on the words of `caption_words`. The COCO evaluation
    weighs recall more: its numbers are others.
    """
    scores: list[float] = []
    for prediction, row in zip(predictions, references, strict=True):
        words = caption_words(prediction)
        scores.append(max(_f1(words, caption_words(reference)) for reference in row))
    return sum(scores) / len(scores)


def _f1(words: Sequence[str], reference: Sequence[str]) -> float:
    common = longest_common_subsequence(words, reference)
    return 2 * common / (len(words) + len(reference)) if common else 0.0


def longest_common_subsequence(words: Sequence[str], others: Sequence[str]) -> int:
    """Its length. One step for each of `others`, on the bits of an integer with one bit for each of `words` (Hyyrö,
    2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(words)) - 1
    free = every
    for word in others:
        matches = free & places.get(word, 0)
        free = (free + matches | free - matches) & every
    return len(words) - free.bit_count()
