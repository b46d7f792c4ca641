"""The soft accuracy of visual question answering, where ten people answered each question (Antol et al., 2015).

An answer that three of them gave is right. The normalisation is that of the official evaluation:
github.com/GT-Vision-Lab/VQA, vqaEval.py of 2021. It compares answers without normalisation where all people agree; here
they are always normalised.
"""

import re
from collections.abc import Sequence

ENOUGH = 3
"""People who make an answer right."""
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
ARTICLES = {"a", "an", "the"}
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4",
    "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
SHORTENED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
    you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, char in enumerate(word) if char == "'"]


CONTRACTIONS = {wrong: word for word in SHORTENED.split() for wrong in _without_one_apostrophe(word)}
"""Words that lack an apostrophe, with it. The official table has one entry that takes it away."""
CONTRACTIONS["somebody'd"] = "somebodyd"


def vqa_accuracy(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> float:
    """The mean over the rows of what each answer is worth, 0 to 1.

    A row's worth is the mean, over all ways to leave one reference out, of the share of ENOUGH others that equal the
    answer, 1 at most. Rows with fewer than four references need all others; with one, it must be that.
    """
    worths = [_worth(prediction, right) for prediction, right in zip(predictions, references, strict=True)]
    return sum(worths) / len(worths)


def _worth(prediction: str, references: tuple[str, ...]) -> float:
    answer = normalised(prediction)
    equal = [normalised(reference) == answer for reference in references]
    count = sum(equal)
    if len(references) == 1:
        return float(count)
    enough = min(ENOUGH, len(references) - 1)
    return sum(min(1.0, (count - left_out) / enough) for left_out in equal) / len(references)


def normalised(answer: str) -> str:
    """An answer in lower case without articles and punctuation, its number words as digits."""
    words = [NUMBERS.get(word, word) for word in _without_punctuation(" ".join(answer.split())).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """Punctuation inside words becomes a space; elsewhere, and in a text with a number such as 1,000, nothing."""
    has_number = COMMA_IN_NUMBER.search(text) is not None
    left = text
    for mark in PUNCTUATION:
        is_outside = f"{mark} " in text or f" {mark}" in text
        left = left.replace(mark, "" if is_outside or has_number else " ")
    return PERIOD.sub("", left)
