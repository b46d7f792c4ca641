"""What a request comes to: one task's typed answers, and which version gave them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ladder.answers import Answer
from serving.admission import Refused, Target
from serving.errors import ServingError
from serving.row_queue import Outcome
from serving.told import FinishReason
from side_registry.task import TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One task's answers, in the rows' order, and which version gave them: one gave all."""

    task: str
    version: int
    alias: str | None
    """The alias that led to the version; None where it was pinned."""
    generation: int
    """The registry's generation that was fully applied here when the request was admitted."""
    spec: TaskSpec
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """The end of a streamed text."""

    prediction: Prediction
    """Its only answer is the whole text."""
    finish_reason: FinishReason


def prediction_or_fault(target: Target, outcomes: Sequence[Outcome]) -> Prediction | Refused:
    """The task's answers, or the first fault among them. A fault that is nobody's in particular is raised."""
    for outcome in outcomes:
        if isinstance(outcome, ServingError):
            return outcome
        if isinstance(outcome, Exception):
            raise outcome
    return predicted(target, outcomes)


def predicted(target: Target, answers: Sequence[Answer]) -> Prediction:
    resident = target.resident
    return Prediction(
        task=resident.task,
        version=resident.version,
        alias=target.alias,
        generation=target.generation,
        spec=resident.spec,
        answers=tuple(answers),
    )
