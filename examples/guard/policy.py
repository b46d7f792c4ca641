"""The guard's policy: which answer of which classifier blocks or routes a request.

Knows answers by task; no server, no connection.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from sidecast import SidecastError

Action = Literal["block", "route", "allow"]
OnError = Literal["block", "allow"]
Answers = Mapping[str, Mapping[str, float] | SidecastError]
"""By task: every label's probability, or the error with which the task failed."""


class PolicyError(Exception):
    """The policy is wrong, or does not fit the group; the message is one sentence."""

    reason = "INVALID_POLICY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """If `task` gives `label` a probability of at least `threshold`, do `action`."""

    task: str
    label: str
    threshold: float
    action: Action
    to: str = ""
    """Where a route leads."""

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, int | float) or not 0 <= self.threshold <= 1:
            raise PolicyError(f"threshold of {self.task}, {self.label} must be 0 to 1, got {self.threshold!r}")
        if self.action not in ("block", "route"):
            raise PolicyError(f"action of {self.task}, {self.label} must be block or route, got {self.action!r}")
        if (self.action == "route") != bool(self.to):
            raise PolicyError(f"rule of {self.task}, {self.label}: a route needs `to`, a block has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What happens to a request, and why."""

    action: Action
    to: str = ""
    """Where a route leads."""
    cause: str = "no rule applies"
    """The classifier that caused it, with label and probability."""

    def __str__(self) -> str:
        return f"{self.action}{f' to {self.to}' if self.to else ''}: {self.cause}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Rules in the order in which they are read."""

    rules: Sequence[Rule]
    on_error: OnError = "block"
    """What happens if a classifier that a rule names fails."""

    def decide(self, answers: Answers) -> Decision:
        """Return what happens to a request. A block ends the reading; of several routes the first counts.

        Raises:
            PolicyError: a rule names a task that was not asked, or a label that the task does not have.
        """
        decision = Decision(action="allow")
        for rule in self.rules:
            score = self._score(rule, answers)
            if isinstance(score, SidecastError):
                if self.on_error == "block":
                    return Decision(action="block", cause=f"{rule.task} failed: {score}")
            elif score >= rule.threshold and (rule.action == "block" or decision.action == "allow"):
                decision = Decision(action=rule.action, to=rule.to, cause=f"{rule.task}, {rule.label} {score:.2f}")
                if rule.action == "block":
                    return decision
        return decision

    def _score(self, rule: Rule, answers: Answers) -> float | SidecastError:
        if rule.task not in answers:
            raise PolicyError(f"the policy names the task {rule.task}; the group has {', '.join(answers) or 'none'}")
        scores = answers[rule.task]
        if isinstance(scores, SidecastError):
            return scores
        if rule.label not in scores:
            raise PolicyError(f"the policy names the label {rule.label}; {rule.task} has {', '.join(scores) or 'none'}")
        return scores[rule.label]


def read_policy(path: Path) -> Policy:
    """Read a TOML file: `on_error`, and a table [[rule]] for each rule.

    Raises:
        PolicyError: the file cannot be read, or a setting is unknown, missing or wrong.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path} cannot be read: {error}") from None
    if unknown := document.keys() - {"on_error", "rule"}:
        raise PolicyError(f"{path}: unknown setting {min(unknown)}; use on_error and [[rule]]")
    on_error = document.get("on_error", "block")
    if on_error not in get_args(OnError):
        raise PolicyError(f"{path}: on_error must be block or allow, got {on_error!r}")
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not tables:
        raise PolicyError(f"{path}: at least one [[rule]] is needed")
    return Policy(rules=[_rule(path, number, table) for number, table in enumerate(tables, 1)], on_error=on_error)


def _rule(path: Path, number: int, table: object) -> Rule:
    if not isinstance(table, dict):
        raise PolicyError(f"{path}: rule {number} is no table; write [[rule]]")
    known = [field.name for field in fields(Rule)]
    if unknown := table.keys() - set(known):
        raise PolicyError(f"{path}: rule {number} has the unknown setting {min(unknown)}; use {', '.join(known)}")
    if missing := [name for name in known if name != "to" and name not in table]:
        raise PolicyError(f"{path}: rule {number} lacks {missing[0]}")
    return Rule(**table)
