"""What the demo with images measured: answers, scores, times and counts. The tables and the page are made of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from demo.swap import SwapLog
from demo.vision.questions import Question, by_picture

KINDS = ("yes or no", "shape", "colour")
"""Kinds of questions, as `Question.kind` has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question, and the server's answer to it."""

    question: Question
    answer: str
    score: float
    """The answer's probability."""

    @property
    def is_right(self) -> bool:
        """Whether the answer is the right one."""
        return self.answer == self.question.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long two questions about each of some pictures took, one after the other, in seconds."""

    first: Sequence[float]
    """The server had not seen the picture."""
    second: Sequence[float]

    @property
    def first_ms(self) -> float:
        """Median, in milliseconds."""
        return 1000 * median(self.first)

    @property
    def second_ms(self) -> float:
        """Median, in milliseconds."""
        return 1000 * median(self.second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The whole outcome."""

    asked: Sequence[Asked]
    """Every question of the test pictures, answered by version 2."""
    train: Sequence[Question]
    """The rows that version 2 was trained on."""
    quick_pictures: int
    """Pictures that version 1 was trained on."""
    quick_score: float
    """Version 1's share of right answers to the test questions."""
    text_only_score: float
    """The same of a side network that reads the question alone."""
    times: Times
    swap: SwapLog
    requests: int
    """All requests that the demo's clients sent."""
    hits: int
    """Images whose features were in the server's cache."""
    misses: int
    """Images that the server had to encode."""

    @property
    def score(self) -> float:
        """Version 2's share of right answers."""
        return share_right(self.asked)

    @property
    def majority(self) -> float:
        """The share of test questions whose answer is the most common one of the training rows."""
        return _share_of_commonest(self.train, [each.question for each in self.asked])

    @property
    def train_pictures(self) -> int:
        """Pictures that version 2 was trained on."""
        return len(by_picture(self.train))

    @property
    def test_pictures(self) -> int:
        """Pictures that the test questions are about."""
        return len(by_picture(each.question for each in self.asked))

    def of_kind(self, kind: str) -> tuple[int, float, float]:
        """Return the number of test questions of a kind, version 2's score, and the score of the commonest answer."""
        asked = [each for each in self.asked if each.question.kind == kind]
        known = [row for row in self.train if row.kind == kind]
        return len(asked), share_right(asked), _share_of_commonest(known, [each.question for each in asked])


def share_right(asked: Sequence[Asked]) -> float:
    """Return the share of right answers; 0 of none."""
    return sum(each.is_right for each in asked) / len(asked) if asked else 0.0


def _share_of_commonest(known: Sequence[Question], questions: Sequence[Question]) -> float:
    if not known or not questions:
        return 0.0
    [(commonest, _)] = Counter(row.answer for row in known).most_common(1)
    return sum(row.answer == commonest for row in questions) / len(questions)
