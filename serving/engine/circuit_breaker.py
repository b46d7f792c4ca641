"""Circuit breakers for side networks that are slow or fail."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.engine.rows import Key, Resident
from serving.errors import SideFailed


class SlowSides:
    """Who sits out, by task and version: a new version of the task is not affected. Device thread only.

    Args:
        limit_s: longest that one side network may take for its rows of a batch.
        bench_s: how long it sits out then.
    """

    def __init__(self, limit_s: float, bench_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s, self._bench_s, self._clock = limit_s, bench_s, clock
        self._until: dict[Key, tuple[float, SideFailed]] = {}

    def watch(self, resident: Resident, seconds: float) -> SideFailed | None:
        """What its rows fail with where it took too long; then it sits out."""
        if seconds <= self.limit_s:
            return None
        why = f"it took {seconds:.1f} s for its rows of a batch, the limit is {self.limit_s:g} s (side_timeout_s)"
        fault, now = SideFailed(resident.task, resident.version, why), self._clock()
        self._until = {key: each for key, each in self._until.items() if each[0] > now}  # some are never asked again
        self._until[resident.key] = (now + self._bench_s, fault)
        return fault

    def fault(self, resident: Resident) -> SideFailed | None:
        """What its rows fail with at once while it sits out."""
        if not self._until or resident.key not in self._until:
            return None
        until, fault = self._until[resident.key]
        left = until - self._clock()
        if left <= 0:
            del self._until[resident.key]
            return None
        return SideFailed(resident.task, resident.version, f"{fault.why}; it is asked again in {left:.0f} s")


log = logging.getLogger(__name__)

FAILURES = 32
"""Rows of a version that fail in a row before it rests."""
REST_S = (30.0, 3600.0)
"""The first rest and the longest; each is twice the one before."""


@dataclass(slots=True)
class _Trouble:
    """What one version has done."""

    failures: int = 0
    suspect: bool = False
    """It was in a slow turn: to be asked apart from others, to see who it was."""
    rests: int = 0
    until: float = 0.0


class Resting:
    """Who rests, by task and version.

    Args:
        limit_s: longest that a turn may take which has nothing but rows in shadow.
        clock: seconds.
        is_there: whether a version still is; those that are gone are forgotten when there is new trouble.
    """

    def __init__(
        self, limit_s: float, clock: Callable[[], float], is_there: Callable[[Key], bool] = lambda key: True
    ) -> None:
        self._limit_s, self._clock, self._is_there = limit_s, clock, is_there
        self._troubles: dict[Key, _Trouble] = {}

    def rests(self, key: Key) -> bool:
        trouble = self._troubles.get(key)
        return trouble is not None and self._clock() < trouble.until

    def is_suspect(self, key: Key) -> bool:
        trouble = self._troubles.get(key)
        return trouble is not None and trouble.suspect

    def took(self, key: Key, seconds: float, alone: bool) -> None:
        """A turn in shadow with it took so long; `alone`: no other version was in it."""
        if seconds > self._limit_s:
            trouble = self._trouble(key)
            trouble.suspect = True
            if alone:
                self._rest(key, trouble, f"took {seconds:.1f} s for a turn, the limit is {self._limit_s:g} s")
        elif alone and key in self._troubles:
            self._troubles[key].suspect = False

    def ended(self, key: Key, error: Exception | None) -> None:
        """One row of it ended."""
        if error is None and key not in self._troubles:
            return
        trouble = self._trouble(key)
        trouble.failures = trouble.failures + 1 if error else 0
        if trouble.failures >= FAILURES:
            self._rest(key, trouble, f"failed {trouble.failures} times in a row: {error}")

    def _trouble(self, key: Key) -> _Trouble:
        if key not in self._troubles:
            self._troubles = {known: each for known, each in self._troubles.items() if self._is_there(known)}
            self._troubles[key] = _Trouble()
        return self._troubles[key]

    def _rest(self, key: Key, trouble: _Trouble, why: str) -> None:
        if self._clock() < trouble.until:
            return
        pause = min(REST_S[0] * 2**trouble.rests, REST_S[1])
        trouble.failures, trouble.rests, trouble.until = 0, min(trouble.rests + 1, 16), self._clock() + pause
        log.warning("in shadow, %s:%d %s; it is not asked again for %.0f s", *key, why, pause)
