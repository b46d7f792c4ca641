"""Running estimates of what the device does: throughput, how long a text holds its slot, load, utilization."""

import time
from collections import deque
from collections.abc import Callable

STALL = 4.0
"""One observation counts for at most this many times the prediction: a step that stalled once says little about the
next one. Where many are that slow, the prediction follows within a few of them."""

STEP_DECAY = 0.8
"""Weight that each step leaves to the ones before it."""

TEXT_DECAY = 0.9
"""Weight that each text leaves to the ones before it."""

SPREADS = 2.0
"""A text is expected to hold its slot for the mean and this many mean absolute deviations. Higher rejects more
requests, lower finishes more of them after their deadline."""


class MovingAverage:
    """Seconds per unit of work, weighted towards the newest observations, with a guard against stalls.

    Every prediction is 0 until the first observation.

    Args:
        decay: weight that each observation leaves to the ones before it.
        first_weight: observations that the first one counts for. 1 / (1 - decay) makes it an ordinary EWMA that starts
            at the first value; 1 forgets the first value sooner.
    """

    def __init__(self, decay: float, first_weight: float = 1.0) -> None:
        self._decay = decay
        self._first_weight = first_weight
        self._amount = 0.0
        self._seconds = 0.0
        self._count = 0.0

    @property
    def is_known(self) -> bool:
        """Something was observed."""
        return self._amount > 0

    @property
    def mean_seconds(self) -> float:
        """Seconds of one observation, whatever its amount."""
        return self._seconds / self._count if self.is_known else 0.0

    def seconds(self, amount: float = 1.0) -> float:
        """Predicted seconds for this amount of work."""
        return amount * self._seconds / self._amount if self.is_known else 0.0

    def learn(self, seconds: float, amount: float = 1.0) -> None:
        """Add an observation: this amount of work, more than 0, took so many seconds."""
        if not self.is_known:
            weight = self._first_weight
            self._amount, self._seconds, self._count = weight * amount, weight * seconds, weight
            return
        seconds = self.without_stall(seconds, amount)
        self._amount = self._decay * self._amount + amount
        self._seconds = self._decay * self._seconds + seconds
        self._count = self._decay * self._count + 1

    def without_stall(self, seconds: float, amount: float = 1.0) -> float:
        """The seconds that such an observation counts for."""
        return min(seconds, STALL * self.seconds(amount)) if self.is_known else seconds


class Throughput:
    """How long tokens take on the device.

    Unknown, and every answer 0 seconds, until a step leaves rows waiting: a batch that is not full says little.
    """

    def __init__(self) -> None:
        self._average = MovingAverage(STEP_DECAY)

    @property
    def is_known(self) -> bool:
        """A step has left rows waiting."""
        return self._average.is_known

    def learn(self, tokens: int, seconds: float, crowded: bool = True) -> None:
        """Add a step that took so many tokens out of the queue. Longer steps count more.

        Args:
            crowded: it left rows waiting. A step that did not counts only where it was faster than predicted.
        """
        if tokens <= 0 or seconds <= 0 or not (crowded or seconds < self.seconds(tokens)):
            return
        self._average.learn(seconds, tokens)

    def seconds(self, tokens: float) -> float:
        """How long these tokens take in full batches."""
        return self._average.seconds(tokens)

    def least_seconds(self, tokens: float, took: float) -> float:
        """What a step's tokens would take in full batches, at most what the step took; that, while nothing is known."""
        return min(took, self.seconds(tokens)) if self.is_known else took

    def step_seconds(self, tokens: float) -> float:
        """How long the next step takes where so many tokens wait."""
        return min(self._average.mean_seconds, self.seconds(tokens))


class SlotHoldTime:
    """How long a text holds its slot. Unknown, and every answer 0 seconds, until a text has ended.

    Args:
        slots: rows of texts that are generated at a time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._average = MovingAverage(TEXT_DECAY, first_weight=1 / (1 - TEXT_DECAY))
        self._spread_s = 0.0
        """Mean absolute deviation, with the same decay."""

    @property
    def is_known(self) -> bool:
        """A text has ended."""
        return self._average.is_known

    @property
    def hold_s(self) -> float:
        """From a text's start to its end, enough for most texts."""
        return self._average.seconds() + SPREADS * self._spread_s

    def learn(self, seconds: float, whole: bool = True) -> None:
        """Add a text that held its slot for so long.

        Args:
            whole: it came to its end. One that was cancelled counts only where it had already taken longer than the
            mean.
        """
        mean_s = self._average.seconds()
        if seconds <= 0 or not (whole or seconds > mean_s > 0):
            return
        if self.is_known:
            deviation_s = abs(self._average.without_stall(seconds) - mean_s)
            self._spread_s = TEXT_DECAY * self._spread_s + (1 - TEXT_DECAY) * deviation_s
        self._average.learn(seconds)

    def wait_s(self, rows: float, running: int) -> float:
        """Until so many more rows have a slot each, while so many run. Slots are taken to become free evenly."""
        return max(0.0, rows + running - self._slots) * self._average.seconds() / self._slots


FAILED_STEPS = 8
"""Failed steps in a row after which the device counts as broken."""


class DeviceLoad:
    """Seconds of the device that were used, in a way that does not depend on how full the batches were.

    New rows count what their tokens take in full batches. A step of texts counts the share of the slots that they held.
    While the throughput is unknown, all of the time that steps took counts.

    Args:
        slots: rows of texts that can be generated at a time.
    """

    def __init__(self, throughput: Throughput, slots: int) -> None:
        self._throughput = throughput
        self._slots = slots
        self._failed = 0
        self.seconds = 0.0
        """Used since the start."""

    @property
    def fails(self) -> bool:
        """No step has succeeded for a while: the device, or what drives it, is broken."""
        return self._failed >= FAILED_STEPS

    def add_step(self, seconds: float, tokens: int, running: int) -> None:
        """A step took so long, with so many tokens of new rows and so many rows of texts."""
        self._failed = 0
        new_s = self._throughput.least_seconds(tokens, seconds) if tokens else 0.0
        self.seconds += new_s + (seconds - new_s) * min(1.0, running / self._slots)

    def add_failed_step(self, seconds: float) -> None:
        """A step took so long and raised."""
        self._failed += 1
        self.seconds += seconds


class Estimates:
    """What is known of the device: its throughput, its load, how long texts hold slots, and the step in progress.

    Args:
        slots: rows of texts that are generated at a time.
    """

    def __init__(self, slots: int) -> None:
        self.throughput = Throughput()
        self.hold_time = SlotHoldTime(slots)
        self.load = DeviceLoad(self.throughput, slots)
        self._step_began = 0.0
        self._step_tokens = 0

    def begin_step(self, tokens: int, now: float) -> None:
        """A step begins, with so many tokens of new rows."""
        self._step_began = now
        self._step_tokens = tokens

    def end_step(self, now: float, *, crowded: bool, running: int) -> float:
        """The step has ended; returns the seconds that it took.

        Args:
            crowded: it left rows waiting.
            running: rows of texts in it.
        """
        seconds = now - self._step_began
        self.throughput.learn(self._step_tokens, seconds, crowded)
        self.load.add_step(seconds, self._step_tokens, running)
        self._step_tokens = 0
        return seconds

    def fail_step(self, now: float) -> float:
        """The step has raised, and says nothing about throughput; returns the seconds that it took."""
        seconds = now - self._step_began
        self.load.add_failed_step(seconds)
        self._step_tokens = 0
        return seconds

    def step_left_s(self, now: float) -> float:
        """How long the step in progress still takes, as far as its new rows go; 0 without one."""
        if not self._step_tokens:
            return 0.0
        return max(0.0, self._step_began + self.throughput.seconds(self._step_tokens) - now)


LONGEST_GAP = 10
"""A gap between requests counts for at most this many times `max_wait_s`: one pause does not outweigh a burst."""


class ArrivalGap:
    """Average time between requests; the newest gap counts half.

    Args:
        max_wait_s: longest that an idle device waits for another request.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._last: float | None = None
        self._gap_s = 0.0

    def note(self, now: float) -> None:
        """A request came."""
        if self._last is not None:
            self._gap_s = (self._gap_s + min(now - self._last, LONGEST_GAP * self._max_wait_s)) / 2
        self._last = now

    @property
    def expects_another(self) -> bool:
        """Whether the next request can be expected within the longest wait."""
        return self._gap_s <= self._max_wait_s


WINDOW_S = 5.0
"""Length of the sliding window of `Utilization`, in seconds."""


class Utilization:
    """Share of the last seconds that a total of seconds grew by. Each reading is compared with earlier readings.

    Args:
        total: seconds used since the start.
        clock: seconds.
    """

    def __init__(self, total: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._readings: deque[tuple[float, float]] = deque([(clock(), total())])

    @property
    def now(self) -> float:
        """Share of the window, or of the time since the first reading where that is shorter: 0 idle, 1 busy."""
        now = self._clock()
        total = self._total()
        while len(self._readings) > 1 and self._readings[1][0] <= now - WINDOW_S:
            self._readings.popleft()
        since, before = self._readings[0]
        self._readings.append((now, total))
        return min(1.0, max(0.0, total - before) / (now - since)) if now > since else 0.0
