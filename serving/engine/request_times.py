"""Where the time of one request goes, stage by stage. A request that asks for it carries one of these with its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

DeviceStage = Literal["backbone", "side", "decode"]


@dataclass(slots=True, eq=False)
class RequestTimes:
    """Seconds of one request. The event loop writes the first two, the device thread the others.

    A stage on the device counts whole, also where other requests shared it.
    """

    prepare: float = 0.0
    """Text to tokens, and images to features."""
    queue: float = 0.0
    """Until the first of its rows went to the device."""
    backbone: float = 0.0
    side: float = 0.0
    """All side networks that score, together: those of one shape are one computation."""
    decode: float = 0.0
    steps: int = 0
    """Of decoding texts, one token each."""
    inputs: int = 0
    """Distinct inputs of its batches that the backbone read, or the cache knew."""
    cached_inputs: int = 0
    """Of these, those that the activation cache knew."""
    batch_rows: int = 0
    """Rows of its batches, those of other requests included."""
    _since: float = 0.0

    def queued(self) -> None:
        """Note that its rows begin to wait."""
        self._since = perf_counter()

    def started(self) -> None:
        """Note that some of its rows go to the device."""
        if not self.queue:
            self.queue = perf_counter() - self._since

    def add(self, stage: DeviceStage, seconds: float) -> None:
        """Count time of a stage on the device."""
        setattr(self, stage, getattr(self, stage) + seconds)


def times_of(all_times: Iterable[RequestTimes | None]) -> set[RequestTimes]:
    """The requests among these rows that want their times."""
    return {times for times in all_times if times is not None}
