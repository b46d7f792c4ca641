"""Running estimates of what the device does: throughput, how long a text holds its slot, load, utilization."""

import time
from collections import deque
from collections.abc import Callable

THROUGHPUT_MEMORY = 0.8
"""How much each turn leaves of what was learned before."""

THROUGHPUT_STALL = 4.0
"""A turn counts for at most this many times what was predicted: one that stalled says little about the next."""


class Throughput:
    """Unknown, and then every answer 0 seconds, until a turn leaves rows waiting for the first time."""

    def __init__(self) -> None:
        self._tokens = self._seconds = self._turns = 0.0

    @property
    def is_known(self) -> bool:
        return self._tokens > 0

    def learn(self, tokens: int, seconds: float, crowded: bool = True) -> None:
        """A turn took so many tokens off the queue in this time. Longer turns count more.

        Args:
            crowded: it left rows waiting.
        """
        if tokens <= 0 or seconds <= 0:
            return
        predicted = self.seconds(tokens)
        if not crowded and seconds >= predicted:
            return
        if self.is_known:
            seconds = min(seconds, THROUGHPUT_STALL * predicted)
        self._tokens = THROUGHPUT_MEMORY * self._tokens + tokens
        self._seconds = THROUGHPUT_MEMORY * self._seconds + seconds
        self._turns = THROUGHPUT_MEMORY * self._turns + 1

    def seconds(self, tokens: float) -> float:
        """How long these tokens take."""
        return tokens * self._seconds / self._tokens if self.is_known else 0.0

    def least_seconds(self, tokens: float, took: float) -> float:
        """Of a turn that took `took`: how long its tokens take where rows wait, which is what they cost in the end."""
        return min(took, self.seconds(tokens)) if self.is_known else took

    def turn_seconds(self, tokens: float) -> float:
        """How long the next turn takes where so many tokens wait."""
        return min(self._seconds / self._turns, self.seconds(tokens)) if self.is_known else 0.0


HOLD_MEMORY = 0.9
"""How much each text leaves of what was learned before."""

HOLD_STALL = 4.0
"""A text counts for at most this many times the mean: one turn that stalled says little about the next texts."""


SPREADS = 2.0
"""How many mean deviations over the mean a text is allowed for: more sheds more, less wastes more on what is late."""


class SlotHoldTime:
    """Unknown, and then every answer 0 seconds, until a text has ended for the first time.

    Args:
        count: rows of texts that are made at a time.
    """

    def __init__(self, count: int) -> None:
        self.count, self._hold_s, self._spread_s = count, 0.0, 0.0

    @property
    def is_known(self) -> bool:
        return self._hold_s > 0

    @property
    def hold_s(self) -> float:
        """From a text's start to its end, for most texts."""
        return self._hold_s + SPREADS * self._spread_s

    def learn(self, seconds: float, whole: bool = True) -> None:
        """A text held its place for so long.

        Args:
            whole: it came to its end. What was given up before tells only of texts that take longer than the mean.
        """
        if seconds <= 0 or not (whole or seconds > self._hold_s > 0):
            return
        if self.is_known:
            seconds = min(seconds, HOLD_STALL * self._hold_s)
            self._spread_s = HOLD_MEMORY * self._spread_s + (1 - HOLD_MEMORY) * abs(seconds - self._hold_s)
        self._hold_s = HOLD_MEMORY * self._hold_s + (1 - HOLD_MEMORY) * seconds if self.is_known else seconds

    def wait_s(self, rows: float, running: int) -> float:
        """Until so many rows more have a place each, where so many are running: places come back evenly."""
        return max(0.0, rows + running - self.count) * self._hold_s / self.count


TOO_MANY_FAILED = 8
"""Turns in a row."""


class DeviceLoad:
    """Told of every turn.

    Args:
        places: texts that can be made at a time.
    """

    def __init__(self, pace: Throughput, places: int) -> None:
        self._pace, self._places, self._failed = pace, places, 0
        self.seconds = 0.0
        """How much of the device was used: of new rows, what they take in full batches; of a turn for texts, the share
        of its places that were taken. While the pace is unknown, all of the time that turns took."""

    @property
    def fails(self) -> bool:
        """Nothing has come off lately: the device, or what drives it, is broken."""
        return self._failed >= TOO_MANY_FAILED

    def turned(self, seconds: float, tokens: int, running: int) -> None:
        """A turn took so long, for new rows of so many tokens and so many texts being made."""
        self._failed = 0
        new = self._pace.least_seconds(tokens, seconds) if tokens else 0.0
        self.seconds += new + (seconds - new) * min(1.0, running / self._places)

    def failed(self, seconds: float) -> None:
        """A turn took so long and came to nothing."""
        self._failed += 1
        self.seconds += seconds


WINDOW_S = 5.0
"""It is told of so many seconds."""


class Utilization:
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
