"""Thresholds of labels against a search through all of them."""

import random

import pytest

from ladder import ChooseLabels, LabelsAnswer
from training.data import Example
from training.multitask.thresholds import choose_again, fit_thresholds

LABELS = ("rude", "threat")


def examples(*targets: set[str]) -> list[Example]:
    return [Example(fields={}, target=frozenset(target), line=1) for target in targets]


def f1(scores: list[float], right: list[bool], threshold: float) -> float:
    hits = sum(score >= threshold and is_right for score, is_right in zip(scores, right, strict=True))
    return 2 * hits / (sum(score >= threshold for score in scores) + sum(right))


@pytest.mark.parametrize("seed", range(20))
def test_no_other_threshold_has_a_higher_f1(seed: int) -> None:
    pick = random.Random(seed)
    scores = [round(pick.random(), 1) for _ in range(12)]  # some are equal
    right = [pick.random() < 0.3 + score / 2 for score in scores]
    right[0] = True
    answers = [LabelsAnswer(labels=(), scores=(score, 0.5)) for score in scores]
    fitted = fit_thresholds(LABELS, answers, examples(*({"rude"} if one else set() for one in right)))
    best = max(f1(scores, right, threshold) for threshold in scores)
    assert f1(scores, right, fitted["rude"]) == best
    assert 0 <= fitted["rude"] <= 1


def test_a_label_that_no_row_has_keeps_one_half() -> None:
    answers = [LabelsAnswer(labels=(), scores=(0.4, 0.9)), LabelsAnswer(labels=(), scores=(0.2, 0.8))]
    assert fit_thresholds(LABELS, answers, examples({"rude"}, set())) == {"rude": pytest.approx(0.3), "threat": 0.5}


def test_answers_are_chosen_anew_highest_score_first() -> None:
    answerer = ChooseLabels(labels=LABELS)
    answers = [answerer.choose(scores) for scores in ((0.4, 0.9), (0.2, 0.1))]
    assert [answer.labels for answer in answers if isinstance(answer, LabelsAnswer)] == [("threat",), ()]
    again = choose_again(answerer, (0.3, 0.3), answers)
    assert [answer.labels for answer in again if isinstance(answer, LabelsAnswer)] == [("threat", "rude"), ()]
