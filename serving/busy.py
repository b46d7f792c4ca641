"""How much of the last seconds went into something, of which a running total is known."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 5.0
"""It is told of so many seconds."""


class Share:
    """Ask it every now and then: it compares with what it saw before.

    Args:
        total: seconds since the start.
        clock: seconds.
    """

    def __init__(self, total: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._seen: deque[tuple[float, float]] = deque([(clock(), total())])

    @property
    def now(self) -> float:
        """Of the last seconds, or of the time since it was asked first: from 0, nothing, to 1, all of it."""
        now, total = self._clock(), self._total()
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        self._seen.append((now, total))
        return min(1.0, max(0.0, total - before) / (now - since)) if now > since else 0.0
