"""Bootstrap intervals of every metric, and the scores of each class."""

import random

import numpy as np
import pytest

from side_registry import TaskSpec
from side_registry.specs.task_kinds import KINDS
from tests.training import toy
from training.data import Example
from training.metrics import evaluation_of, measurable, measure, score
from training.metrics.bleu import bleu_of_statistics, bleu_statistics
from training.metrics.classes import class_scores, pairs_of
from training.metrics.intervals import intervals
from training.metrics.scoring import FAMILIES

WORDS = ["a", "cat", "sat", "on", "the", "mat", "and", "looked", "at", "one", "small", "dog", "that", "ran"]


def examples_of(spec: TaskSpec, targets: list) -> list[Example]:
    return [Example(fields={spec.fields[0]: f"row {index}"}, target=t, line=index) for index, t in enumerate(targets)]


def labels(rows: int, share: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Predictions of which about `share` are right, and targets."""
    pick = random.Random(seed)
    targets = [pick.choice(["aa", "bb"]) for _ in range(rows)]
    return [t if pick.random() < share else {"aa": "bb", "bb": "aa"}[t] for t in targets], targets


def test_an_accuracys_interval_is_that_of_scipys_bootstrap() -> None:
    from scipy.stats import bootstrap

    predictions, targets = labels(400, 0.8)
    examples = examples_of(toy.CLASSES, targets)
    ours = intervals(toy.CLASSES, predictions, examples, ["accuracy"])["accuracy"]
    right = np.array([p == t for p, t in zip(predictions, targets, strict=True)], float)
    theirs = bootstrap((right,), np.mean, n_resamples=1000, method="percentile", rng=0).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_score_of_every_kind_has_an_interval_around_it(kind: str) -> None:
    pick = random.Random(1)
    confidences = None
    if kind == "classification":
        spec, confidences = toy.CLASSES, [pick.uniform(0.5, 1) for _ in range(60)]
        values, targets = labels(60, 0.7)
    elif kind == "regression":
        spec, targets = toy.VALUES, [pick.random() for _ in range(60)]
        values = [target + pick.gauss(0, 0.2) for target in targets]
    elif kind == "text":
        spec, targets = toy.TEXTS, [" ".join(pick.choices(WORDS, k=8)) for _ in range(60)]
        values = [t if pick.random() < 0.4 else " ".join([*t.split()[:6], pick.choice(WORDS)]) for t in targets]
    else:
        spec, targets = toy.PAIRS, [f"target {index}" for index in range(60)]
        vectors = np.random.default_rng(0).normal(size=(60, 8))
        values = [*(vectors + np.random.default_rng(1).normal(size=(60, 8))).tolist(), *vectors.tolist()]
    examples = examples_of(spec, targets)
    names = list(measurable(spec))
    scores = measure(spec, values, examples, names, confidences)
    found = intervals(spec, values, examples, names, confidences)
    assert list(found) == names
    for name, (low, high) in found.items():
        slack = 0.05 if name == "ece" else 0.0  # a resample's error is larger: its bins are emptier
        assert low - slack <= scores[name] <= high, name
        assert low < high, name
    assert found == intervals(spec, values, examples, names, confidences)  # the seed is fixed
    evaluation = evaluation_of(spec, values, confidences, examples)
    extra = ["ece"] if kind == "classification" else []
    assert list(evaluation.scores) == [*FAMILIES[spec.metric], *extra]
    assert list(evaluation.classes) == list(spec.labels)


def test_more_rows_make_a_narrower_interval() -> None:
    widths = []
    for rows in (50, 5000):
        predictions, targets = labels(rows, 0.8)
        low, high = intervals(toy.CLASSES, predictions, examples_of(toy.CLASSES, targets), ["matthews"])["matthews"]
        widths.append(high - low)
    assert widths[0] > 5 * widths[1]


def test_bleu_of_the_summed_statistics_is_bleu_of_the_file() -> None:
    texts = ["a cat sat on the mat", "one small dog ran at the cat", "it"]
    references = [("a cat sat on the small mat", "a cat on a mat"), ("one small dog ran at the dog",), ("it was",)]
    whole = score("bleu", texts, references)["bleu"]
    assert whole > 0.3
    assert bleu_of_statistics(bleu_statistics(texts, references).sum(0)) == pytest.approx(whole)


def test_class_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import precision_recall_fscore_support

    pick = random.Random(3)
    names = ["a", "b", "c", "never"]
    targets = pick.choices(names[:3], k=80)
    predictions = [t if pick.random() < 0.5 else pick.choice(names[:2]) for t in targets]
    ours = class_scores(pairs_of(predictions, targets), names)
    theirs = np.array(precision_recall_fscore_support(targets, predictions, labels=names, zero_division=0))
    got = np.array([(one.precision, one.recall, one.f1, one.rows) for one in ours.values()]).T
    assert got == pytest.approx(theirs)
    assert sum(one.answered for one in ours.values()) == 80
