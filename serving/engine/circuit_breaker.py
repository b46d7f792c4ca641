"""Circuit breaker for versions that are slow or fail: they are not asked for a while.

The engine has one for side networks that exceed `side_timeout_s`, on the device thread. Shadows have one with
exponential back-off, on the event loop. A breaker belongs to one thread.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.engine.rows import Key

log = logging.getLogger(__name__)

MAX_DOUBLINGS = 16


@dataclass(slots=True)
class _Circuit:
    """State of one version."""

    failures: int = 0
    """Rows that failed in a row."""
    openings: int = 0
    until: float = 0.0
    """It is not asked before, by the clock."""
    reason: str = ""


class CircuitBreaker:
    """Opens for a version that takes longer than a limit, or fails many times in a row; closes by itself after a pause.

    Versions are told apart by (task, version), so a new version of the same task is asked at once.

    Args:
        limit_s: longest time that a version may take, in seconds.
        setting: name of the setting that holds `limit_s`, for messages.
        timed: what the limit holds for, for messages.
        role: begins the log line, so that a pause in shadow does not read as one of callers' answers.
        pause_s: seconds that the breaker stays open.
        max_pause_s: each pause of a version is twice the one before it, up to this; None: all last `pause_s`.
        max_failures: rows in a row that may fail before it opens; None: failures do not count.
        clock: seconds.
        is_resident: whether the server still holds a version. Others are forgotten.
    """

    def __init__(
        self,
        limit_s: float,
        setting: str,
        pause_s: float,
        *,
        timed: str = "its rows of a batch",
        role: str = "",
        max_pause_s: float | None = None,
        max_failures: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_resident: Callable[[Key], bool] = lambda key: True,
    ) -> None:
        self.limit_s = limit_s
        self._setting = setting
        self._timed = timed
        self._role = role
        self._pause_s = pause_s
        self._max_pause_s = max_pause_s
        self._max_failures = max_failures
        self._clock = clock
        self._is_resident = is_resident
        self._circuits: dict[Key, _Circuit] = {}

    def is_open(self, key: Key) -> bool:
        """Whether the version must not be asked now."""
        circuit = self._circuits.get(key)
        return circuit is not None and self._clock() < circuit.until

    def explain(self, key: Key) -> str | None:
        """Why the version must not be asked now, and for how long; None: it may be asked."""
        if not self._circuits or not self.is_open(key):
            return None
        circuit = self._circuits[key]
        return f"{circuit.reason}; it is asked again in {circuit.until - self._clock():.0f} s"

    def check_time(self, key: Key, seconds: float, times: float = 1.0) -> str | None:
        """Open if the version took longer than `times` the limit; returns the reason then, else None."""
        limit_s = times * self.limit_s
        if seconds <= limit_s:
            return None
        reason = f"took {seconds:.1f} s for {self._timed}, the limit is {limit_s:g} s ({self._setting})"
        self._open(key, reason)
        return reason

    def count_outcome(self, key: Key, error: Exception | None) -> None:
        """One row of the version ended, with this error or an answer; open if too many in a row have failed."""
        if self._max_failures is None or (error is None and key not in self._circuits):
            return
        circuit = self._circuit(key)
        circuit.failures = circuit.failures + 1 if error else 0
        if circuit.failures >= self._max_failures:
            self._open(key, f"failed {circuit.failures} times in a row: {error}")

    def _open(self, key: Key, reason: str) -> None:
        """Start a pause, unless one is running: several rows of one step report the same trouble."""
        if self.is_open(key):
            return
        circuit = self._circuit(key)
        pause_s = self._pause_s
        if self._max_pause_s is not None:
            pause_s = min(pause_s * 2**circuit.openings, self._max_pause_s)
        circuit.failures = 0
        circuit.openings = min(circuit.openings + 1, MAX_DOUBLINGS)
        circuit.until = self._clock() + pause_s
        circuit.reason = reason
        log.warning("%s%s:%d %s; it is not asked again for %.0f s", self._role, *key, reason, pause_s)

    def _circuit(self, key: Key) -> _Circuit:
        """The version's state. Before a new one is added, states that are needed no more are dropped."""
        if key not in self._circuits:
            self._circuits = {known: circuit for known, circuit in self._circuits.items() if self._keeps(known)}
            self._circuits[key] = _Circuit()
        return self._circuits[key]

    def _keeps(self, key: Key) -> bool:
        return self._is_resident(key) and (self._max_pause_s is not None or self.is_open(key))
