"""How long a text holds its place on the device, of late, and so how long others wait for one. No rows, no clocks.

What a text will come to is not known before, so this is the mean over all of them, and how far they are from it.
"""

MEMORY = 0.9
"""How much each text leaves of what was learned before."""

STALL = 4.0
"""A text counts for at most this many times the mean: one turn that stalled says little about the next texts."""


SPREADS = 2.0
"""How many mean deviations over the mean a text is allowed for: more sheds more, less wastes more on what is late."""


class Places:
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
            seconds = min(seconds, STALL * self._hold_s)
            self._spread_s = MEMORY * self._spread_s + (1 - MEMORY) * abs(seconds - self._hold_s)
        self._hold_s = MEMORY * self._hold_s + (1 - MEMORY) * seconds if self.is_known else seconds

    def wait_s(self, rows: float, running: int) -> float:
        """Until so many rows more have a place each, where so many are running: places come back evenly."""
        return max(0.0, rows + running - self.count) * self._hold_s / self.count
