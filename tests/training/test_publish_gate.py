"""A gate: requirements are read, held against figures, and leave a record."""

import pickle

import pytest

from side_registry import TaskSpec
from side_registry.specs.task_kinds import KINDS
from tests.training import toy
from training.errors import GateRefused, RequirementError
from training.metrics import METRICS, measurable, measure, score
from training.metrics.label_sets import LabelScores
from training.metrics.relevance import Ranked
from training.metrics.scoring import FAMILIES
from training.publish_gate import PublishGate, Requirement, Rival, gate_text


@pytest.mark.parametrize(
    ("text", "shown", "met", "missed"),
    [
        ("accuracy>=0.90", "accuracy>=0.9", 0.9, 0.89),
        (" f1 > 5e-1 ", "f1>0.5", 0.51, 0.5),
        ("accuracy<=1", "accuracy<=1", 1.0, 1.1),
        ("matthews<0.2", "matthews<0.2", -1.0, 0.2),
    ],
)
def test_a_requirement_is_a_score_and_a_bound(text: str, shown: str, met: float, missed: float) -> None:
    required = Requirement.parse(text, toy.CLASSES)
    assert str(required) == shown
    assert required == Requirement.parse(shown, toy.CLASSES)
    assert [required.holds(value) for value in (met, missed, float("nan"))] == [True, False, False]


@pytest.mark.parametrize("text", ["", "accuracy", "accuracy=0.9", "accuracy>=", "accuracy>=high", "0.9<=accuracy",
                                  "accuracy>=nan", "accuracy>=1_0", "accuracy>=0.9 f1>=1"])  # fmt: skip
def test_what_is_no_requirement_says_how_to_write_one(text: str) -> None:
    with pytest.raises(RequirementError, match=r"accuracy>=0\.9"):
        Requirement.parse(text, toy.CLASSES)


def test_an_unknown_score_lists_those_of_the_task() -> None:
    with pytest.raises(RequirementError, match="no score 'acuracy'; it has accuracy, matthews, accuracy_f1, f1, ece"):
        Requirement.parse("acuracy>=0.9", toy.CLASSES)
    with pytest.raises(RequirementError, match=r"it has pearson_spearman, pearson, spearman$"):
        Requirement.parse("accuracy>=0.9", toy.VALUES)


def test_every_fault_is_told_with_its_figures() -> None:
    gate = PublishGate.parse(toy.CLASSES, ["accuracy>=0.9", "f1>=0.5"], "production")
    assert gate.names == ("accuracy", "f1")
    rival = Rival(alias="production", version=3, scores={"accuracy": 0.75, "f1": 0.1})
    with pytest.raises(GateRefused) as caught:
        gate.check({"accuracy": 0.75, "f1": 0.5}, rival, 40, "d" * 64)
    assert str(caught.value) == (
        "letters is not published: accuracy is 0.7500, required is >= 0.9; accuracy is 0.7500, not better than "
        "production's (version 3), which is 0.7500 (measured on 40 rows)"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_record_says_what_was_required_and_measured() -> None:
    gate = PublishGate.parse(toy.CLASSES, ["accuracy>=0.9"], "production")
    rival = Rival(alias="production", version=3, scores={"accuracy": 0.9})
    record = gate.check({"accuracy": 0.925}, rival, 40, "d" * 64)
    assert record == {
        "required": ["accuracy>=0.9"],
        "measured": {"accuracy": 0.925},
        "rows": 40,
        "data_sha256": "d" * 64,
        "better_than": {"alias": "production", "rival": {"version": 3, "measured": {"accuracy": 0.9}}},
    }
    assert gate_text(record) == (
        "gate: accuracy 0.9250 on 40 rows; required accuracy>=0.9; better than production (version 3, 0.9000)"
    )
    first = gate.check({"accuracy": 0.925}, None, 40, "d" * 64)
    assert gate_text(first).endswith("; no production yet to be better than")


def test_the_families_are_what_metrics_return() -> None:
    assert set(FAMILIES) == set(METRICS)
    for kind in KINDS.values():
        for metric in kind.metrics:
            some = {"classification": ["a", "b"], "regression": [0.0, 1.0], "text": ["a", "b"]}
            values = [[], []] if kind.has_spans else some.get(kind.name, [1, 1])
            targets = values
            if kind.has_thresholds:
                values, targets = [LabelScores(["a"], [0.9, 0.1])] * 2, [{"a"}, {"b"}]
            if kind.ranks:
                values = targets = [Ranked((0.1, 0.9), (0.0, 1.0))]
            assert tuple(score(metric, values, targets, labels=["a", "b"])) == FAMILIES[metric]


def test_any_score_of_the_kind_can_be_measured() -> None:
    examples = toy_examples(["aa", "bb", "bb"])
    cola = TaskSpec(name="cola", kind="classification", template="{sentence}", labels=("aa", "bb"), metric="matthews")
    assert next(iter(measurable(cola))) == "matthews"
    assert measure(cola, ["aa", "bb", "aa"], examples, ["accuracy", "f1", "matthews"]) == {
        "accuracy": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "matthews": pytest.approx(0.5),
    }
    three = toy.CLASSES.model_copy(update={"labels": ("aa", "bb", "cc")})
    assert list(measurable(three)) == ["accuracy", "matthews", "ece"]


def toy_examples(targets: list[str]):
    from training.data import Example

    return [Example(fields={"sentence": "a"}, target=target, line=1) for target in targets]
