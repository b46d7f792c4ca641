"""Outcomes of rows: what a side network answered, or the error that its rows get."""

import logging
import math
from collections.abc import Sequence

from ladder.answers import Answer, SpansAnswer
from ladder.errors import is_out_of_memory
from serving.engine.rows import EngineRow, Event, Resident
from serving.errors import OutOfMemory, SideFailed
from side_registry.specs.task_kinds import KINDS

log = logging.getLogger(__name__)


def checked(resident: Resident, outcome: Answer | Exception) -> Answer | Exception:
    """Return an answer of finite numbers as it is, and for anything else OutOfMemory or SideFailed."""
    if isinstance(outcome, Exception) and is_out_of_memory(outcome):
        return OutOfMemory(1)
    if isinstance(outcome, Exception):
        failure = SideFailed(resident.task, resident.version, str(outcome) or type(outcome).__name__)
        failure.__cause__ = outcome
        return failure
    if not _is_finite(outcome, resident.spec.kind):
        return SideFailed(resident.task, resident.version, "its answer is not a finite number")
    return outcome


def _is_finite(outcome: Answer, kind: str) -> bool:
    for column in KINDS[kind].columns:
        if column.dtype == "float32":
            value = getattr(outcome, column.attribute)
            if not all(map(math.isfinite, value if column.is_list else (value,))):
                return False
    return not isinstance(outcome, SpansAnswer) or all(map(math.isfinite, outcome.outside))


def log_failures(events: Sequence[tuple[EngineRow, Event]]) -> None:
    """Log one line for each side network that failed, however many rows it had."""
    failed = {(event.task, event.version): event for _, event in events if isinstance(event, SideFailed)}
    for failure in failed.values():
        log.error("%s", failure, exc_info=failure.__cause__)
