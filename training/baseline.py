"""The score of the best answer that ignores its input: what a side network must beat to have learned anything."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from side_registry.task import TaskSpec
from side_registry.task_kinds import KINDS
from training.data import Example
from training.metrics import score


@dataclass(frozen=True, slots=True)
class Baseline:
    """One answer for all rows, and its score."""

    answer: str | float
    """A label, the mean of the values, or a text."""
    score: float
    """By the task's metric."""

    def __str__(self) -> str:
        """`baseline 0.5092 (always "negative")`."""
        shown = f'"{self.answer[:80]}"' if isinstance(self.answer, str) else f"the mean, {self.answer:.4g}"
        return f"baseline {self.score:.4f} (always {shown})"


def baseline_of(spec: TaskSpec, examples: Sequence[Example]) -> Baseline | None:
    """The baseline on these examples: their commonest label or text, or the mean of their values.

    `accuracy_f1` takes the better one of its two labels, since the positive one alone has an F1 above 0. None for an
    embedding: equal vectors rank nothing.
    """
    kind = KINDS[spec.kind]
    if kind.target_is_input:
        return None
    targets = [example.target for example in examples]
    if kind.has_range:
        answers: Sequence[str | float] = [sum(targets) / len(targets)]
    elif spec.metric == "accuracy_f1":
        answers = spec.labels
    else:
        answers = [Counter(targets).most_common(1)[0][0]]
    scored = [Baseline(answer, _score(spec, answer, targets)) for answer in answers]
    return max(scored, key=lambda baseline: baseline.score)


def _score(spec: TaskSpec, answer: str | float, targets: Sequence[str | float]) -> float:
    return score(spec.metric, [answer] * len(targets), targets, labels=spec.labels)[spec.metric]
