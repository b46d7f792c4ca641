"""Limits of requests and rows a second, of each caller and task: token buckets.

A bucket holds `burst_s` seconds' worth, and a request takes its rows out. One with more rows than a bucket holds goes
in when the bucket is full, and leaves it in debt: so it is answered, and the average holds all the same.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from serving.config import AccessConfig
from serving.errors import RateLimited

MAX_BUCKETS = 100_000
"""Most pairs of caller and task; beyond it the one that was used longest ago begins anew."""

ROUNDING_S = 1e-6
"""Sums of times are not exact."""


class RateLimits:
    """The buckets of all callers. Use it on one event loop.

    Args:
        now: seconds of a monotonic clock.
    """

    def __init__(self, config: AccessConfig, now: Callable[[], float] = time.monotonic) -> None:
        rates = {"requests": config.caller_requests_per_s, "rows": config.caller_rows_per_s}
        self._rates = {what: rate for what, rate in rates.items() if rate}
        self._burst_s = config.caller_burst_s
        self._now = now
        self._empty_at: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        """By caller, task and what is counted: when the bucket's content would have flowed in, from empty.

        The bucket has (now - empty_at) x rate, at most burst_s x rate; below 0 is debt."""

    @property
    def has_any(self) -> bool:
        """Whether there is a limit."""
        return bool(self._rates)

    def take(self, caller: str, charges: Sequence[tuple[str, int]]) -> None:
        """Take one request and its rows from the buckets of each task; of all tasks, or of none.

        Args:
            charges: tasks and their rows.

        Raises:
            RateLimited: a bucket is empty.
        """
        if not self._rates:
            return
        now = self._now()
        full = now - self._burst_s
        filled: dict[tuple[str, str, str], float] = {}
        for task, rows in charges:
            for what, rate in self._rates.items():
                key = (caller, task, what)
                empty_at = max(filled.get(key, self._empty_at.get(key, full)), full)
                cost_s = (rows if what == "rows" else 1) / rate
                lacking_s = min(cost_s, self._burst_s) - (now - empty_at)
                if lacking_s > ROUNDING_S:
                    raise RateLimited(caller, task, what, rate, lacking_s)
                filled[key] = empty_at + cost_s
        for key, empty_at in filled.items():
            self._empty_at[key] = empty_at
            self._empty_at.move_to_end(key)
        while len(self._empty_at) > MAX_BUCKETS * len(self._rates):
            self._empty_at.popitem(last=False)
