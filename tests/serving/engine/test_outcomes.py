"""An answer leaves the engine only if all of its numbers are finite."""

import math

import pytest

from ladder import Answer, ClassAnswer, LabelsAnswer, TextAnswer, ValueAnswer, VectorAnswer
from serving.engine import Resident
from serving.engine.outcomes import checked
from serving.errors import OutOfMemory, SideFailed
from tests.serving.kit import empty_resident, make_spec

RESIDENT = empty_resident("sst2", 3)


def of_kind(kind: str) -> Resident:
    return empty_resident("sst2", 3, make_spec(kind=kind))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_an_answer_with_a_number_that_is_not_finite_is_a_failure_of_its_side_network(number: float) -> None:
    answers: dict[str, Answer] = {
        "classification": ClassAnswer(label="a", score=1.0, scores=(1.0, number)),
        "regression": ValueAnswer(value=number),
        "embedding": VectorAnswer(values=(number, 0.0)),
        "multilabel": LabelsAnswer(labels=("a",), scores=(1.0, number)),
    }
    for kind, answer in answers.items():
        failure = checked(of_kind(kind), answer)
        assert isinstance(failure, SideFailed)
        assert (failure.task, failure.version) == ("sst2", 3)


def test_finite_answers_and_texts_pass_as_they_are() -> None:
    answers: dict[str, Answer] = {
        "classification": ClassAnswer(label="a", score=1.0, scores=(1.0, 0.0)),
        "regression": ValueAnswer(value=-1e30),
        "embedding": VectorAnswer(values=(1.0, 0.0)),
        "text": TextAnswer(text="nan", tokens=(3,)),
        "multilabel": LabelsAnswer(labels=(), scores=(0.2, 0.0)),
    }
    assert {kind: checked(of_kind(kind), answer) for kind, answer in answers.items()} == answers


def test_an_exception_is_a_failure_with_its_cause_and_no_memory_is_nobodys_fault() -> None:
    error = ZeroDivisionError("division by zero")
    failure = checked(RESIDENT, error)
    assert isinstance(failure, SideFailed)
    assert failure.why == "division by zero"
    assert failure.__cause__ is error
    assert isinstance(checked(RESIDENT, RuntimeError("can't allocate memory")), OutOfMemory)
