"""How fast the device has been of late, and so how long what waits will take. Knows no rows.

Learned from turns that left rows waiting: one that took all there was does not show what the device can do, except
where it was faster than predicted. Without that, a pace that is far too slow would keep the queue so short that it is
never learned again.
"""

MEMORY = 0.8
"""How much each turn leaves of what was learned before."""

STALL = 4.0
"""A turn counts for at most this many times what was predicted: one that stalled says little about the next."""


class Pace:
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
            seconds = min(seconds, STALL * predicted)
        self._tokens = MEMORY * self._tokens + tokens
        self._seconds = MEMORY * self._seconds + seconds
        self._turns = MEMORY * self._turns + 1

    def seconds(self, tokens: float) -> float:
        """How long these tokens take."""
        return tokens * self._seconds / self._tokens if self.is_known else 0.0

    def least_seconds(self, tokens: float, took: float) -> float:
        """Of a turn that took `took`: how long its tokens take where rows wait, which is what they cost in the end."""
        return min(took, self.seconds(tokens)) if self.is_known else took

    def turn_seconds(self, tokens: float) -> float:
        """How long the next turn takes where so many tokens wait."""
        return min(self._seconds / self._turns, self.seconds(tokens)) if self.is_known else 0.0
