"""Side networks that were too slow sit out for a while, so that their neighbours wait for one of them at most once."""

import time
from collections.abc import Callable

from serving.errors import SideFailed
from serving.pool import Key, Resident


class Bench:
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
