"""Metrics and ranks against numbers worked out by hand or by a slow loop, and what they do at the edges."""

import math
import random

import numpy as np
import pytest

from side_registry.specs.task import TaskSpec
from training.baseline import baseline_of
from training.data import Example
from training.errors import MetricError
from training.metrics import METRICS, LabelScores, evaluation_of, ranks, rows_to_answer, score, score_values
from training.metrics.label_sets import label_set_classes, resampler, score_label_sets
from training.metrics.relevance import Ranked
from training.metrics.scoring import RANKINGS

LABELS = ("no", "yes")
TARGETS = ["yes", "yes", "yes", "no", "no"]
PREDICTIONS = ["yes", "yes", "no", "yes", "no"]  # 2 true positives, 1 false negative, 1 false positive, 1 true negative

SOME: dict[str, tuple[list, list]] = {
    "accuracy": (PREDICTIONS, TARGETS),
    "matthews": (PREDICTIONS, TARGETS),
    "accuracy_f1": (PREDICTIONS, TARGETS),
    "pearson_spearman": ([0.5, 1.0, 4.0], [1.0, 2.0, 3.0]),
    "exact_match": (["a b", "c"], ["a b", "d"]),
    "vqa_accuracy": (["a b", "c"], [("a b", "a c"), "d"]),
    "cider": (["a b", "c"], [("a b", "a c"), "d"]),
    "bleu": (["a b c d", "c"], [("a b c d", "a c"), "d"]),
    "rouge_l": (["a b", "c"], [("a b", "a c"), "d"]),
    "recall_at_1": ([1, 3], ["a b", "d"]),
    "mrr": ([1, 3], ["a b", "d"]),
    **dict.fromkeys(("ndcg_at_10", "mrr_at_10"), ([Ranked((0.1, 0.9), (0.0, 1.0))],) * 2),
    **dict.fromkeys(("f1_micro", "f1_macro", "average_precision"), ([LabelScores(("yes",), (0.1, 0.9))], [{"yes"}])),
    "entity_f1": ([[]], [[{"start": 0, "end": 2, "label": "yes"}]]),
}


def test_accuracy_is_the_share_of_right_answers():
    assert score("accuracy", PREDICTIONS, TARGETS) == {"accuracy": pytest.approx(3 / 5)}


def test_entities_are_right_where_edges_and_label_are():
    def entities(*found: tuple[int, int, str]) -> list[dict]:
        return [{"start": start, "end": end, "label": label} for start, end, label in found]

    targets = [entities((0, 3, "yes"), (4, 9, "no")), entities((0, 5, "yes")), []]
    predictions = [
        entities((0, 3, "yes"), (4, 7, "no")),
        entities((0, 2, "yes"), (2, 5, "yes")),
        entities((1, 2, "no")),
    ]
    scores = score("entity_f1", predictions, targets, labels=LABELS)
    by_hand = {"entity_f1": 2 * 1 / (5 + 3), "precision": 1 / 5, "recall": 1 / 3, "f1_yes": 2 * 1 / (3 + 2), "f1_no": 0}
    assert scores == pytest.approx(by_hand)
    assert score("entity_f1", targets, targets, labels=LABELS)["entity_f1"] == 1
    assert score("entity_f1", [[]], [[]], labels=LABELS)["entity_f1"] == 0


def test_matthews_is_the_correlation_of_the_confusion_matrix():
    by_hand = (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)
    assert score("matthews", PREDICTIONS, TARGETS) == {"matthews": pytest.approx(by_hand)}


def test_accuracy_f1_gives_the_mean_and_both_parts():
    f1 = 2 * 2 / (2 * 2 + 1 + 1)
    by_hand = {"accuracy_f1": (3 / 5 + f1) / 2, "accuracy": 3 / 5, "f1": f1}
    assert score("accuracy_f1", PREDICTIONS, TARGETS, labels=LABELS) == pytest.approx(by_hand)


def test_f1s_positive_class_is_the_second_label():
    f1_of_no = 2 * 1 / (2 * 1 + 1 + 1)
    assert score("accuracy_f1", PREDICTIONS, TARGETS, labels=("yes", "no"))["f1"] == pytest.approx(f1_of_no)


@pytest.mark.parametrize("target", LABELS)
def test_an_invalid_output_counts_wrong(target):
    right = score("accuracy_f1", ["yes", "no", target], ["yes", "no", target], labels=LABELS)
    invalid = score("accuracy_f1", ["yes", "no", "maybe"], ["yes", "no", target], labels=LABELS)
    assert right["accuracy_f1"] == 1
    assert invalid["accuracy"] == pytest.approx(2 / 3)
    assert invalid["f1"] == pytest.approx(2 / 3)
    assert score("accuracy", ["maybe"], [target])["accuracy"] == 0
    assert score("matthews", ["yes", "no", "maybe"], ["yes", "no", target])["matthews"] < 1


def test_scores_of_several_labels_are_over_all_decisions_and_by_label():
    answers = [
        LabelScores(("a",), (0.9, 0.2, 0.1)),
        LabelScores(("a", "b"), (0.8, 0.6, 0.1)),
        LabelScores((), (0.4, 0.3, 0)),
    ]
    targets = [{"a"}, {"b"}, {"a"}]
    # a: 1 hit, 1 false, 1 missed; b: 1 hit; c: no row has it, and no answer. Ranks of a: right, wrong, right
    by_hand = {"f1_micro": 4 / 6, "f1_macro": (0.5 + 1) / 2, "average_precision": ((1 + 2 / 3) / 2 + 1) / 2}
    for metric in by_hand:
        scores = score(metric, answers, targets, labels=("a", "b", "c"))
        assert scores == pytest.approx(by_hand)
        assert next(iter(scores)) == metric


def test_no_label_anywhere_scores_0_and_a_rows_without_labels_count():
    nothing = LabelScores((), (0.1, 0.2))
    assert score("f1_micro", [nothing], [set()], labels=LABELS) == dict.fromkeys(
        ("f1_micro", "f1_macro", "average_precision"), 0.0
    )
    assert score("f1_micro", [LabelScores(("no",), (0.9, 0.2))], [set()], labels=LABELS)["f1_micro"] == 0


def test_pearson_spearman_gives_the_mean_and_both_parts():
    predictions, targets = SOME["pearson_spearman"]
    scores = score("pearson_spearman", predictions, targets)
    by_hand = 3.5 / math.sqrt(2 * (0.5**2 + 1 + 4**2 - 5.5**2 / 3))
    assert scores["pearson"] == pytest.approx(by_hand)
    assert scores["spearman"] == pytest.approx(1)
    assert scores["pearson_spearman"] == pytest.approx((by_hand + 1) / 2)


def test_correlations_run_from_minus_one_to_one():
    targets = [1.0, 2.0, 3.0]
    assert score("pearson_spearman", targets, targets)["pearson_spearman"] == pytest.approx(1)
    assert score("pearson_spearman", targets[::-1], targets)["pearson_spearman"] == pytest.approx(-1)
    assert score("matthews", ["no", "yes"], ["yes", "no"])["matthews"] == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn_and_scipy(seed: int):
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import f1_score, matthews_corrcoef

    pick = random.Random(seed)
    labels = ["a", "b", "c", "d"][: 2 + seed % 3]
    targets = [pick.choice(labels) for _ in range(50)]
    predictions = [target if pick.random() < 0.5 else pick.choice([*labels, "none"]) for target in targets]
    assert score("matthews", predictions, targets)["matthews"] == pytest.approx(matthews_corrcoef(targets, predictions))
    yes = [pick.random() < 0.3 for _ in range(50)]
    answers = [pick.random() < 0.5 for _ in range(50)]
    words = [[LABELS[one] for one in each] for each in (answers, yes)]
    assert score("accuracy_f1", *words, labels=LABELS)["f1"] == pytest.approx(f1_score(yes, answers))
    scale = 10.0 ** (100 * (seed - 2))  # squares of the largest are infinite, of the smallest 0
    numbers = [scale * pick.randint(-5, 5) for _ in range(50)]  # with ties
    guesses = [number + scale * pick.gauss(0, 3) for number in numbers]
    scores = score("pearson_spearman", guesses, numbers)
    assert scores["pearson"] == pytest.approx(pearsonr(guesses, numbers).statistic)
    assert scores["spearman"] == pytest.approx(spearmanr(guesses, numbers).statistic)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("predictions", "targets"),
    [([2.0] * 3, [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [2.0] * 3), ([2.0] * 3, [2.0] * 3), ([1.0], [1.0])],
    ids=["constant predictions", "constant targets", "both constant", "one row"],
)
def test_an_undefined_correlation_is_zero_without_a_warning(predictions, targets):
    assert score("pearson_spearman", predictions, targets) == {"pearson_spearman": 0, "pearson": 0, "spearman": 0}


@pytest.mark.filterwarnings("error")
def test_constant_classes_give_zero_without_a_warning():
    assert score("matthews", ["a", "a"], ["a", "b"]) == {"matthews": 0}
    assert score("matthews", ["a", "a"], ["a", "a"]) == {"matthews": 0}
    assert score("accuracy_f1", ["no"], ["no"], labels=LABELS) == {"accuracy_f1": 0.5, "accuracy": 1, "f1": 0}


def test_exact_match_ignores_how_much_white_space_but_not_case():
    scores = score("exact_match", [" a  b\n", "C", "d"], ["a b", "c", "d"])
    assert scores == {"exact_match": pytest.approx(2 / 3)}


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_the_headline_has_the_metrics_own_name_and_all_are_plain_floats(metric):
    scores = score(metric, *SOME[metric], labels=LABELS)
    assert next(iter(scores)) == metric
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_the_order_of_rows_does_not_matter(metric):
    pairs = list(zip(*SOME[metric], strict=True))
    random.Random(0).shuffle(pairs)
    predictions, targets = zip(*pairs, strict=True)
    assert score(metric, predictions, targets, labels=LABELS) == pytest.approx(
        score(metric, *SOME[metric], labels=LABELS)
    )


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_nothing_to_score_is_an_error(metric):
    with pytest.raises(MetricError, match="no query has" if metric in RANKINGS else "nothing to score"):
        score(metric, [], [], labels=LABELS)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_unequal_lengths_are_an_error(metric):
    with pytest.raises(MetricError, match="1 predictions for 2 targets"):
        score(metric, ["a"], ["a", "b"])


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(MetricError, match="metric meteor: unknown; give one of accuracy, matthews, accuracy_f1"):
        score("meteor", ["a"], ["a"])


@pytest.mark.parametrize("labels", [(), ("a", "b", "c")])
def test_f1_needs_two_labels(labels):
    with pytest.raises(MetricError, match=f"needs the task's two labels.*got {len(labels)}"):
        score("accuracy_f1", ["a"], ["a"], labels=labels)


@pytest.mark.parametrize("value", [math.nan, math.inf, "3"])
def test_a_value_that_is_no_finite_number_is_an_error(value):
    with pytest.raises(MetricError, match=r"predictions\[1\] is .* not a finite number"):
        score("pearson_spearman", [1.0, value], [1.0, 2.0])


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
    monkeypatch.setattr("training.metrics.ranking.CHUNK", 7)
    pick = random.Random(3)
    words = [f"w{number}" for number in range(25)]
    pairs = [(pick.choice(words), pick.choice(words)) for _ in range(40)]
    candidates = list(dict.fromkeys(target for _, target in pairs))
    vectors = [[pick.gauss(0, 1) for _ in range(6)] for _ in range(len(pairs) + len(candidates))]
    slow = []
    for index, (text, target) in enumerate(pairs):
        right = {other for this, other in pairs if this == text} | {text}
        near = {
            candidate: sum(a * b for a, b in zip(vectors[index], vectors[len(pairs) + number], strict=True))
            for number, candidate in enumerate(candidates)
        }
        wrong = [candidate for candidate in candidates if candidate not in right]
        slow.append(1 + sum(near[candidate] >= near[target] for candidate in wrong))
    assert ranks(pairs, vectors) == slow
    assert max(slow) > 1


def test_recall_and_mrr_by_hand():
    predictions, targets = [1, 2, 4, 1], ["a", "b", "c", "d"]
    both = {"recall_at_1": 0.5, "mrr": pytest.approx((1 + 1 / 2 + 1 / 4 + 1) / 4)}
    assert score("recall_at_1", predictions, targets) == both
    assert list(score("mrr", predictions, targets).items()) == [("mrr", both["mrr"]), ("recall_at_1", 0.5)]
    with pytest.raises(MetricError, match="ranks start at 1"):
        score("mrr", [0, 1], ["a", "b"])


def test_what_is_asked_is_each_text_and_each_distinct_target():
    rows = examples(("a", "A"), ("b", "A"), ("c", "C"))
    assert rows_to_answer(MEANING, rows) == [{"text": text} for text in ("a", "b", "c", "A", "C")]
    values = [EAST, NORTH, WEST, EAST, WEST]
    assert score_values(MEANING, values, rows) == {"recall_at_1": pytest.approx(2 / 3), "mrr": pytest.approx(2.5 / 3)}


def test_other_kinds_are_asked_their_rows_alone():
    spec = TaskSpec(name="a", kind="text", template="{text}")
    assert rows_to_answer(spec, examples(("a", "A"))) == [{"text": "a"}]
    assert score_values(spec, ["A", "x"], examples(("a", "A"), ("b", "B"))) == {"exact_match": 0.5}


def test_scores_of_drawn_rows_are_those_of_label_sets():
    pick = np.random.default_rng(3)
    labels = ("a", "b", "c")
    values = pick.integers(0, 5, (30, 3)) / 4  # some are equal
    answers = [LabelScores([n for n, v in zip(labels, row, strict=True) if v > 0.5], row) for row in values.tolist()]
    targets = [frozenset(n for n in labels[:2] if pick.random() < 0.4) for _ in answers]
    scores = resampler(answers, targets, labels)
    for drawn in (np.arange(30), pick.integers(0, 30, 30), np.full(30, 7)):
        expected = score_label_sets([answers[row] for row in drawn], [targets[row] for row in drawn], labels)
        assert scores(drawn) == pytest.approx(expected)


def test_the_report_of_label_sets_has_each_label():
    answers = [LabelScores(["a"], [0.9, 0.1]), LabelScores(["a", "b"], [0.8, 0.7])]
    classes = label_set_classes(answers, [frozenset({"a"}), frozenset({"b"})], ("a", "b"))
    assert (classes["a"].precision, classes["a"].recall, classes["a"].rows, classes["a"].answered) == (0.5, 1.0, 1, 2)
    assert (classes["b"].f1, classes["b"].rows) == (1.0, 1)


RANKING = TaskSpec(name="passages", kind="ranking", template="{query} | {passage}")


def passages(*rows: tuple[str, float]) -> list[Example]:
    return [Example(fields={"query": query, "passage": "p"}, target=target, line=1) for query, target in rows]


def test_passages_are_compared_with_those_of_their_query():
    rows = passages(("a", 1.0), ("b", 0.0), ("a", 0.0), ("b", 0.5), ("b", 1.0), ("alone", 1.0), ("none", 0.0))
    scores = [0.4, 0.9, 0.6, 0.2, 0.7, 0.9, 0.9]  # a: 0 1 -> second; b: 0, 1, 0.5
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    ndcg = (second + (second + 0.5 * third) / (1 + 0.5 * second)) / 2
    assert score_values(RANKING, scores, rows) == {"ndcg_at_10": pytest.approx(ndcg), "mrr_at_10": 0.5}
    best = [row.target for row in rows]
    assert score_values(RANKING, best, rows) == {"ndcg_at_10": 1.0, "mrr_at_10": 1.0}
    found = evaluation_of(RANKING, best, None, rows)
    assert found.intervals == {"ndcg_at_10": (1.0, 1.0), "mrr_at_10": (1.0, 1.0)}
    assert str(baseline_of(RANKING, rows)).endswith('(always "the same score")')


def test_passages_that_are_all_equally_relevant_rank_nothing():
    with pytest.raises(MetricError, match="no query has passages that differ in relevance"):
        score_values(RANKING, [0.1, 0.2], passages(("a", 1.0), ("a", 1.0)))


def test_a_relevant_passage_after_the_tenth_counts_as_not_found():
    rows = passages(*[("a", 0.0)] * 10, ("a", 1.0))
    assert score_values(RANKING, [0.5] * 11, rows)["mrr_at_10"] == 0.0
