"""The engine: a batch of rows of many tasks in, an answer or that row's own failure out. Runs on the device thread.

Holds the backbone. The side networks come with the rows, so a swap in the pool never reaches a batch in flight.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ladder.answer import Row, answer
from ladder.answerers import Answerer, Generate
from ladder.answers import Answer, ClassAnswer, ValueAnswer, VectorAnswer
from ladder.backbone import Backbone
from serving.errors import SideFailed
from serving.metrics import STAGES, Metrics
from serving.pool import Resident

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One tokenized input for one resident side network."""

    ids: tuple[int, ...]
    resident: Resident
    answerer: Answerer | None = None
    """None: the resident's."""

    @property
    def how(self) -> Answerer:
        return self.answerer or self.resident.answerer

    @property
    def weight(self) -> int:
        """The rows of a batch it counts as: every beam is one."""
        return self.how.generation.num_beams if isinstance(self.how, Generate) else 1

    @property
    def alone(self) -> bool:
        """Rows of the same tokens are not answered as one: their texts are drawn anew."""
        return isinstance(self.how, Generate) and self.how.generation.is_random


class Engine:
    """One backbone on one device."""

    def __init__(self, backbone: Backbone, metrics: Metrics | None = None) -> None:
        self.backbone, self._metrics = backbone, metrics or Metrics()

    def predict(self, rows: Sequence[EngineRow]) -> list[Answer | Exception]:
        """Answers in the rows' order, from one backbone pass over distinct tokens; SideFailed where it failed."""
        asked = [Row(ids=row.ids, side=row.resident.side, answerer=row.how) for row in rows]
        answers = answer(self.backbone, asked, observe=self._observe)
        outcomes = [_checked(row.resident, each) for row, each in zip(rows, answers, strict=True)]
        _report(outcomes)
        return outcomes

    def _observe(self, stage: str, seconds: float) -> None:
        if stage in STAGES:
            self._metrics.stage(stage, seconds)


def _checked(resident: Resident, outcome: Answer | Exception) -> Answer | Exception:
    if isinstance(outcome, Exception):
        failure = SideFailed(resident.task, resident.version, str(outcome) or type(outcome).__name__)
        failure.__cause__ = outcome
        return failure
    if not _is_finite(outcome):
        return SideFailed(resident.task, resident.version, "its answer is not a finite number")
    return outcome


def _is_finite(outcome: Answer) -> bool:
    if isinstance(outcome, ClassAnswer):
        return all(map(math.isfinite, outcome.scores))
    if isinstance(outcome, VectorAnswer):
        return all(map(math.isfinite, outcome.values))
    return not isinstance(outcome, ValueAnswer) or math.isfinite(outcome.value)


def _report(outcomes: Sequence[Answer | Exception]) -> None:
    """One log line for each side network that failed, however many rows it had."""
    failed = {(each.task, each.version): each for each in outcomes if isinstance(each, SideFailed)}
    for failure in failed.values():
        log.error("%s", failure, exc_info=failure.__cause__)
