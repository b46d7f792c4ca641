"""Ranks of embeddings' own targets, by hand and against a slow loop, and the scores made of them."""

import random

import pytest

from side_registry.task import TaskSpec
from training.data import Example
from training.errors import MetricError
from training.metrics import score
from training.ranking import ranks
from training.scoring import asked, score_values

MEANING = TaskSpec(name="meaning", kind="embedding", template="say: {text}", dimensions=2)
EAST, NORTH, WEST = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)
NORTH_EAST = (0.8, 0.6)


def examples(*pairs: tuple[str, str]) -> list[Example]:
    return [Example(fields={"text": text}, target=target, line=line) for line, (text, target) in enumerate(pairs, 1)]


def test_a_rank_counts_the_wrong_targets_that_are_as_near_or_nearer():
    pairs = [("a", "A"), ("b", "B"), ("c", "C")]
    assert ranks(pairs, [EAST, NORTH, WEST, EAST, NORTH, WEST]) == [1, 1, 1]
    assert ranks(pairs, [NORTH_EAST, NORTH, WEST, NORTH, EAST, EAST]) == [3, 3, 3]


def test_vectors_that_are_all_the_same_find_nothing():
    assert ranks([("a", "A"), ("b", "B"), ("c", "C")], [EAST] * 6) == [3, 3, 3]


def test_equal_targets_are_one_candidate_and_right_for_both():
    assert ranks([("a", "A"), ("b", "A"), ("c", "C")], [EAST, EAST, WEST, EAST, WEST]) == [1, 1, 1]


def test_a_texts_other_targets_and_the_text_itself_are_no_wrong_answers():
    pairs = [("a", "A1"), ("a", "A2"), ("A1", "a")]
    # candidates A1, A2, a; the text is nearest to itself, and then to A2
    vectors = [EAST, EAST, NORTH, NORTH, NORTH_EAST, EAST]
    assert ranks(pairs, vectors)[:2] == [1, 1]


def test_ranks_are_those_of_a_slow_loop(monkeypatch):
    monkeypatch.setattr("training.ranking.CHUNK", 7)
    pick = random.Random(3)
    words = [f"w{number}" for number in range(25)]
    pairs = [(pick.choice(words), pick.choice(words)) for _ in range(40)]
    candidates = list(dict.fromkeys(target for _, target in pairs))
    vectors = [[pick.gauss(0, 1) for _ in range(6)] for _ in range(len(pairs) + len(candidates))]
    slow = []
    for place, (text, target) in enumerate(pairs):
        right = {other for this, other in pairs if this == text} | {text}
        near = {
            each: sum(a * b for a, b in zip(vectors[place], vectors[len(pairs) + number], strict=True))
            for number, each in enumerate(candidates)
        }
        slow.append(1 + sum(near[each] >= near[target] for each in candidates if each not in right))
    assert ranks(pairs, vectors) == slow
    assert max(slow) > 1


def test_recall_and_mrr_by_hand():
    found, wanted = [1, 2, 4, 1], ["a", "b", "c", "d"]
    both = {"recall_at_1": 0.5, "mrr": pytest.approx((1 + 1 / 2 + 1 / 4 + 1) / 4)}
    assert score("recall_at_1", found, wanted) == both
    assert list(score("mrr", found, wanted).items()) == [("mrr", both["mrr"]), ("recall_at_1", 0.5)]
    with pytest.raises(MetricError, match="ranks start at 1"):
        score("mrr", [0, 1], ["a", "b"])


def test_what_is_asked_is_each_text_and_each_distinct_target():
    rows = examples(("a", "A"), ("b", "A"), ("c", "C"))
    assert asked(MEANING, rows) == [{"text": text} for text in ("a", "b", "c", "A", "C")]
    values = [EAST, NORTH, WEST, EAST, WEST]
    assert score_values(MEANING, values, rows) == {"recall_at_1": pytest.approx(2 / 3), "mrr": pytest.approx(2.5 / 3)}


def test_other_kinds_are_asked_their_rows_alone():
    spec = TaskSpec(name="a", kind="text", template="{text}")
    assert asked(spec, examples(("a", "A"))) == [{"text": "a"}]
    assert score_values(spec, ["A", "x"], examples(("a", "A"), ("b", "B"))) == {"exact_match": 0.5}
