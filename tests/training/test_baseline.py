"""The baseline: the best answer that ignores its input, by the task's own metric."""

import pytest

from side_registry.specs.task import TaskSpec
from tests.training import toy
from training.baseline import baseline_of
from training.builtin_tasks import load_task
from training.data import Example


def examples(targets: list[object]) -> list[Example]:
    return [Example(fields={"sentence": "a"}, target=target, line=line) for line, target in enumerate(targets, 1)]


@pytest.mark.parametrize(
    ("spec", "targets", "answer", "score"),
    [
        (load_task("sst2"), ["positive", "negative", "negative"], "negative", 2 / 3),
        (load_task("cola"), ["acceptable", "unacceptable", "acceptable"], "acceptable", 0.0),
        (load_task("mrpc"), ["not_equivalent"] * 2 + ["equivalent"], "equivalent", (1 / 3 + 1 / 2) / 2),
        (load_task("mrpc"), ["not_equivalent"] * 9 + ["equivalent"], "not_equivalent", 0.45),
        (toy.VALUES, [0.0, 0.5, 1.0], 0.5, 0.0),
        (toy.TEXTS, ["a", "b", "b"], "b", 2 / 3),
        (toy.TEXTS, [("a", "b"), ("c", "b"), ("d", "d")], "b", 2 / 3),
        (load_task("daquar"), ["table", "bed", "a table", "table"], "table", 3 / 4),
    ],
)
def test_it_is_the_commonest_label_or_text_or_the_mean(
    spec: TaskSpec, targets: list[object], answer: object, score: float
) -> None:
    baseline = baseline_of(spec, examples(targets))
    assert baseline is not None
    assert (baseline.answer, baseline.score) == (answer, pytest.approx(score))


def test_captions_take_the_most_typical_one() -> None:
    dogs = ("A dog runs on the grass .", "A brown dog runs .")
    targets = [dogs, ("A dog plays on the grass .", "Two boys swim ."), ("A bicycle .", "A dog sits on the grass .")]
    baseline = baseline_of(load_task("flickr8k"), examples(targets))
    assert baseline is not None
    assert baseline.answer == "A dog runs on the grass ."
    assert baseline.score > 1


@pytest.mark.parametrize(
    ("metric", "answer", "score"),
    [
        ("f1_micro", "aa, bb", 2 * 5 / (8 + 6)),
        ("f1_macro", "aa, bb, many", (1.5 / 1.75 + 1 / 1.5 + 0.5 / 1.25) / 3),
        ("average_precision", "aa, bb, many", (0.75 + 0.5 + 0.25) / 3),
    ],
)
def test_several_labels_are_those_of_most_rows_as_many_as_score_best(metric: str, answer: str, score: float) -> None:
    spec = toy.MANY.model_copy(update={"metric": metric})
    targets = [frozenset(target) for target in ({"aa"}, {"aa", "bb"}, {"aa", "bb", "many"}, set())]
    baseline = baseline_of(spec, examples(list(targets)))
    assert baseline is not None
    assert (baseline.answer, baseline.score) == (answer, pytest.approx(score))


def test_it_reads_as_a_remark() -> None:
    assert str(baseline_of(toy.CLASSES, examples(["aa", "aa", "bb"]))) == 'baseline 0.6667 (always "aa")'
    assert str(baseline_of(toy.VALUES, examples([0.25, 0.5]))) == "baseline 0.0000 (always the mean, 0.375)"


def test_vectors_have_none() -> None:
    assert baseline_of(toy.PAIRS, examples(["a"])) is None
