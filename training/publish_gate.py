"""The publish gate: requirements on a run's scores, and the version that it must be better than.

Decides on figures alone: `training.publishing` and `sidecast publish` measure them.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from side_registry.specs.task import TaskSpec
from training.errors import GateRefused, RequirementError
from training.metrics import measurable

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
)
EXPRESSION = re.compile(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\S+)\s*")
GATE = "publish_gate"
"""Key of a gate's record in a manifest's provenance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A bound on one score."""

    metric: str
    comparison: str
    """One of COMPARISONS."""
    bound: float

    @classmethod
    def parse(cls, text: str, spec: TaskSpec) -> "Requirement":
        """Read `accuracy>=0.90`.

        Raises:
            RequirementError: another form, or a score that the task's answers do not have.
        """
        match = EXPRESSION.fullmatch(text)
        bound = _number(match[3]) if match else None
        if match is None or bound is None:
            raise RequirementError(
                repr(text), 'no requirement; write a score, >=, >, <= or <, and a number: "accuracy>=0.9"'
            )
        if match[1] not in (known := measurable(spec)):
            why = f"task {spec.name} has no score {match[1]!r}; it has {', '.join(known)}"
            raise RequirementError(repr(text), why)
        return cls(metric=match[1], comparison=match[2], bound=bound)

    def __str__(self) -> str:
        """`accuracy>=0.9`, which `parse` reads."""
        return f"{self.metric}{self.comparison}{self.bound:g}"

    def holds(self, value: float) -> bool:
        """Whether a score meets the bound; one that is not a number does not."""
        return COMPARISONS[self.comparison](value, self.bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """The version that a run must be better than, measured on the same rows."""

    alias: str
    version: int
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishGate:
    """What a run of one task must measure."""

    spec: TaskSpec
    requirements: tuple[Requirement, ...]
    better_than: str | None = None
    """An alias: the run's score by the task's metric must be above that of the alias's version."""

    @classmethod
    def parse(cls, spec: TaskSpec, require: Sequence[str], better_than: str | None) -> "PublishGate":
        """Read a gate's requirements. Raises RequirementError."""
        requirements = tuple(Requirement.parse(text, spec) for text in require)
        return cls(spec=spec, requirements=requirements, better_than=better_than)

    @property
    def names(self) -> tuple[str, ...]:
        """The scores that it needs."""
        return tuple(dict.fromkeys([self.spec.metric, *(required.metric for required in self.requirements)]))

    def check(self, scores: Mapping[str, float], rival: Rival | None, rows: int, data_sha256: str) -> dict[str, Any]:
        """Return the record of a run that passes, for its provenance, JSON-ready.

        Args:
            scores: the run's, those of `names` at least.
            rival: None where the task has no version yet, or nothing to be better than.
            rows: how many rows were measured.

        Raises:
            GateRefused: with the figures of all that is not met.
        """
        faults = [
            f"{required.metric} is {scores[required.metric]:.4f}, required is {required.comparison} {required.bound:g}"
            for required in self.requirements
            if not required.holds(scores[required.metric])
        ]
        metric = self.spec.metric
        if rival is not None and not scores[metric] > rival.scores[metric]:
            theirs = f"{rival.alias}'s (version {rival.version}), which is {rival.scores[metric]:.4f}"
            faults.append(f"{metric} is {scores[metric]:.4f}, not better than {theirs}")
        if faults:
            raise GateRefused(self.spec.name, tuple(faults), rows)
        record: dict[str, Any] = {
            "required": [str(required) for required in self.requirements],
            "measured": dict(scores),
            "rows": rows,
            "data_sha256": data_sha256,
        }
        if self.better_than is not None:
            theirs = None if rival is None else {"version": rival.version, "measured": dict(rival.scores)}
            record["better_than"] = {"alias": self.better_than, "rival": theirs}
        return record


def gate_text(record: Mapping[str, Any]) -> str:
    """What a record says, for the history: `gate: accuracy 0.9130, required accuracy>=0.9, ...`."""
    measured = ", ".join(f"{name} {value:.4f}" for name, value in record["measured"].items())
    texts = [f"gate: {measured} on {record['rows']} rows"]
    if record["required"]:
        texts.append(f"required {', '.join(record['required'])}")
    better = record.get("better_than")
    if better is not None and better["rival"] is not None:
        [score, *_] = better["rival"]["measured"].values()
        texts.append(f"better than {better['alias']} (version {better['rival']['version']}, {score:.4f})")
    elif better is not None:
        texts.append(f"no {better['alias']} yet to be better than")
    return "; ".join(texts)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None
