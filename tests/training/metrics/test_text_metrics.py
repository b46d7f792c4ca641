"""Metrics of texts with references, against the official evaluations' numbers and numbers worked out by hand."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.builtin_tasks import load_task
from training.data import Example
from training.metrics import score, score_values
from training.metrics.caption_words import caption_words
from training.metrics.cider import cider
from training.metrics.rouge import longest_common_subsequence
from training.metrics.vqa import normalised, vqa_accuracy

REFERENCES = [
    ("A brown dog runs over the wet grass .", "The dog is running through grass .", "A dog with a red collar runs ."),
    ("Two boys play soccer on a field .", "Two children are playing football ."),
    (
        "A man in a blue shirt rides a bicycle down the street .",
        "A cyclist rides past parked cars .",
        "The man 's bike is red .",
        "Someone rides a bike .",
    ),
    ("A girl doesn't want to jump into the pool .",),
    ("A t-shirt hangs on a line ( outdoors ) .", "Clothes hang on a line ."),
]
CAPTIONS = [
    "A dog runs over the grass",
    "two boys play football on a field.",
    "A man rides a bike down the street .",
    "A girl jumps",
    "A t-shirt hangs on a line ( outdoors ) .",
]
CAPTION_METRICS = ("cider", "bleu", "rouge_l")


def test_captions_score_as_in_pycocoevalcap_and_rouge_score() -> None:
    """Those of pycocoevalcap 1.2 with its Java tokenizer, and rouge-score 0.1.2 on the same words."""
    scores = score("cider", CAPTIONS, REFERENCES)
    assert scores["cider"] == pytest.approx(2.6595112883260668, rel=1e-12)
    assert scores["bleu"] == pytest.approx(0.5497727888536433, rel=1e-9)  # pycocoevalcap adds 1e-9 to its counts
    assert scores["rouge_l"] == pytest.approx(0.7443956043956044, rel=1e-12)


def test_one_rows_share_of_cider_is_that_of_pycocoevalcap() -> None:
    """Rows that say nothing leave the others' document frequencies as they are."""
    alone = [2.52274658, 2.7540158, 1.63186123, 0.61284702, 5.7760858]
    for index, expected in enumerate(alone):
        captions = [caption if index == row else "" for row, caption in enumerate(CAPTIONS)]
        assert 5 * cider(captions, REFERENCES) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog isn't in the colour grey theatre.", "a man 's dog is n't in the colour grey theatre"),
        ("He can't; she won't! I'd cannot gonna wanna", "he ca n't she wo n't i 'd can not gon na wan na"),
        (
            "A t-shirt / red-haired man -- with 3,000 people, $5.50 and 50% off (really) [sic].",
            "a t-shirt / red-haired man with 3,000 people $ 5.50 and 50 % off -lrb- really -rrb- -lsb- sic -rsb-",
        ),
        ("A boy says \"hello\" 'there' ... ‘quotes’ “fancy” – dash", "a boy says hello there quotes fancy dash"),
        ("the U.S. flag at 3:30, St. Mark's, the dogs' toys", "the u.s. flag at 3:30 st. mark 's the dogs toys"),
        ("o'clock and/or black/white 1/2 # 8", "o'clock and/or black/white 1/2 # 8"),
        (" . ,", ""),
    ],
)
def test_words_are_those_of_the_penn_treebank_tokenizer(text: str, words: str) -> None:
    assert " ".join(caption_words(text)) == words


@pytest.mark.parametrize("metric", CAPTION_METRICS)
def test_a_caption_metric_comes_first_and_the_others_with_it(metric: str) -> None:
    scores = score(metric, CAPTIONS, REFERENCES)
    assert next(iter(scores)) == metric
    assert scores == score("cider", CAPTIONS, REFERENCES)
    rows = [Example(fields={}, target=right, line=line) for line, right in enumerate(REFERENCES)]
    assert score_values(load_task("flickr8k"), CAPTIONS, rows) == scores


def test_perfect_captions_get_the_maximum_and_empty_ones_nothing() -> None:
    alone = [(row[0],) for row in REFERENCES]
    assert score("cider", [row[0] for row in alone], alone) == pytest.approx({"cider": 10, "bleu": 1, "rouge_l": 1})
    assert score("cider", [""] * len(alone), alone) == {"cider": 0, "bleu": 0, "rouge_l": 0}
    best = score("bleu", [row[-1] for row in REFERENCES], REFERENCES)
    assert (best["bleu"], best["rouge_l"]) == (pytest.approx(1), 1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_rows_and_of_references_does_not_matter(seed: int) -> None:
    pick = random.Random(seed)
    rows = [(caption, tuple(pick.sample(row, len(row)))) for caption, row in zip(CAPTIONS, REFERENCES, strict=True)]
    pick.shuffle(rows)
    captions, references = zip(*rows, strict=True)
    assert score("cider", captions, references) == pytest.approx(score("cider", CAPTIONS, REFERENCES))


def test_ciders_penalty_for_another_length_is_a_gaussian_of_the_bigrams() -> None:
    """Each word is in one row of two. Of `a a` and `a`, only the clipped 1-grams are alike."""
    by_hand = 10 / 4 * (1 * 1) / (2 * 1) * math.exp(-(1**2) / (2 * 6**2))
    assert cider(["a a", ""], [("a",), ("b",)]) == pytest.approx(by_hand / 2)


def test_one_row_alone_has_no_cider() -> None:
    assert cider(["a dog"], [("a dog",)]) == 0


words = st.lists(st.sampled_from("abc"), max_size=12)


@settings(max_examples=100, deadline=None)
@given(one=words, other=words)
def test_the_common_subsequence_is_that_of_a_slow_table(one: list[str], other: list[str]) -> None:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for row, word in enumerate(one):
        for column, with_word in enumerate(other):
            longer = max(table[row][column + 1], table[row + 1][column])
            table[row + 1][column + 1] = table[row][column] + 1 if word == with_word else longer
    assert longest_common_subsequence(one, other) == table[-1][-1]


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("the dog.", ["dog"] * 3 + ["cat"] * 7, 0.9),  # 2 of 3 others where a dog is left out, else 3
        ("Two", ["2"] * 2 + ["3"] * 8, 0.6),
        ("dont know", ["don't know"] + ["no"] * 9, 0.3),
        ("black/white", ["black white", "black and white"] + ["black, white"] * 8, 1.0),
        ("1,000", ["1000"] * 4 + ["1,000"] * 6, 1.0),
        ("t-shirt", ["t shirt"] * 2 + ["tshirt"] * 8, 0.6),
        ("u.s.", ["us"] * 2 + ["U.S"] + ["usa"] * 7, 0.9),
        ("a", ["yes"] * 9 + ["no"], 0.0),
    ],
)
def test_soft_accuracy_is_that_of_the_official_evaluation(answer: str, right: list[str], expected: float) -> None:
    assert vqa_accuracy([answer], [tuple(right)]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("right", "expected"),
    [(("dog",), 1), (("cat",), 0), (("dog", "cat"), 0.5), (("dog", "dog", "cat"), 2 / 3), (("dog",) * 4, 1)],
)
def test_soft_accuracy_of_fewer_references_needs_all_others(right: tuple[str, ...], expected: float) -> None:
    assert vqa_accuracy(["dog"], [right]) == pytest.approx(expected)


def test_soft_accuracy_has_exact_match_with_it() -> None:
    row = Example(fields={}, target="garbage_bin", line=1)
    scores = score_values(load_task("daquar"), ["Garbage bin"], [row])
    assert list(scores.items()) == [("vqa_accuracy", 1.0), ("exact_match", 0.0)]


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("An  Apple, please!", "apple please"),
        ("ten oclock", "10 o'clock"),
        ("none", "0"),
        ("3.5 meters.", "3.5 meters"),
        ("left-hand side", "left hand side"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("the", ""),
    ],
)
def test_answers_are_normalised(answer: str, normal: str) -> None:
    assert normalised(answer) == normal


def test_any_reference_is_an_exact_match() -> None:
    assert score("exact_match", ["a  b", "c"], [("x", "a b"), ("x", "y")]) == {"exact_match": 0.5}
