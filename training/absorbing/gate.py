"""The gate of an absorbed model: how far its side network answers as the model does, on rows that taught nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ladder import Answer
from side_registry.specs.task import TaskSpec
from training.data import Example
from training.errors import RequirementError
from training.evaluation import answer_value, score_answers
from training.metrics import score_values
from training.metrics.correlation import pearson_and_spearman

POINTS = 100
"""Of a score of 1."""
AGREEMENT = 0.97
"""What is required where nothing is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsorbGate:
    """What a side network must measure before it is published."""

    agreement: float | None = AGREEMENT
    """Least agreement with the teacher on held-out texts, 0 to 1."""
    within: float | None = None
    """Most points of 100 by which its score on labelled rows may be below the teacher's."""

    def __post_init__(self) -> None:
        if self.agreement is not None and not 0 <= self.agreement <= 1:
            raise RequirementError("--agreement", f"give a number within 0 and 1, got {self.agreement:g}")
        if self.within is not None and not 0 <= self.within < math.inf:
            raise RequirementError("--within", f"give points of 100, 0 or more, got {self.within:g}")

    @property
    def required(self) -> list[str]:
        """The requirements in words."""
        texts: list[str] = []
        if self.agreement is not None:
            texts.append(f"agreement>={self.agreement:g}")
        if self.within is not None:
            texts.append(f"within {self.within:g} points of the teacher")
        return texts

    def faults(self, spec: TaskSpec, measured: dict[str, float]) -> tuple[str, ...]:
        """What is not met, each with its figures.

        Args:
            measured: `agreement`; with labelled rows also the spec's metric, and `teacher_` and it.
        """
        faults: list[str] = []
        if self.agreement is not None and not measured["agreement"] >= self.agreement:
            faults.append(f"agreement is {measured['agreement']:.4f}, required is >= {self.agreement:g}")
        if self.within is not None:
            ours, theirs = measured[spec.metric], measured[f"teacher_{spec.metric}"]
            if not (theirs - ours) * POINTS <= self.within + 1e-9:  # 0.5 points of rounded scores are 0.5
                below = f"{(theirs - ours) * POINTS:.2f} points below the teacher's {theirs:.4f}"
                faults.append(f"{spec.metric} is {ours:.4f}, {below}; allowed are {self.within:g}")
        return tuple(faults)


def agreement_of(spec: TaskSpec, answers: Sequence[Answer], teacher: Sequence[Any]) -> float:
    """Share of rows with the teacher's label; of values, the mean of Pearson's and Spearman's correlation."""
    ours = [answer_value(answer) for answer in answers]
    if spec.kind == "regression":
        return sum(pearson_and_spearman(ours, teacher)) / 2
    return sum(own == theirs for own, theirs in zip(ours, teacher, strict=True)) / len(ours)


def labelled_scores(
    spec: TaskSpec, answers: Sequence[Answer], teacher: Sequence[Any], examples: Sequence[Example]
) -> dict[str, float]:
    """The score of both on labelled rows, by the task's metric: its name, and `teacher_` and its name."""
    ours = score_answers(spec, answers, examples)[spec.metric]
    return {spec.metric: ours, f"teacher_{spec.metric}": score_values(spec, teacher, examples)[spec.metric]}
