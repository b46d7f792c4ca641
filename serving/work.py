"""What the device has done so far: for who decides how many replicas there are, and whether this one is well."""

from serving.pace import Pace

TOO_MANY_FAILED = 8
"""Turns in a row."""


class Work:
    """Told of every turn.

    Args:
        places: texts that can be made at a time.
    """

    def __init__(self, pace: Pace, places: int) -> None:
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
