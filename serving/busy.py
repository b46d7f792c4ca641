"""How busy the device was of late, from the time that its stages took."""

import time
from collections import deque

from serving.metrics import Metrics

WINDOW_S = 5.0
"""It is told of so many seconds."""
ON_DEVICE = ("backbone", "side", "decode")


class Busy:
    """Ask it every now and then: it compares with what it saw before."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: deque[tuple[float, float]] = deque([(time.monotonic(), self._computed())])

    @property
    def share(self) -> float:
        """Of the last seconds, or of the time since it was asked first: 0 idle, 1 computing all the time."""
        now, computed = time.monotonic(), self._computed()
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        self._seen.append((now, computed))
        return min(1.0, (computed - before) / (now - since)) if now > since else 0.0

    def _computed(self) -> float:
        """Seconds since the start."""
        return sum(self._metrics.stage_total(stage) for stage in ON_DEVICE)
