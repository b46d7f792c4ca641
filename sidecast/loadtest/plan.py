"""What load to put on a server: levels, one after the other, and what each request is like. No clock, no network."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Arrivals = Literal["poisson", "constant"]


class LoadError(Exception):
    """The load cannot be run with these settings; the message says what to do."""

    reason = "LOAD"


class NothingAnswered(LoadError):
    """Not one request was answered."""

    reason = "NOTHING_ANSWERED"


@dataclass(frozen=True, slots=True)
class Closed:
    """Callers that each send a request, wait for its answer, and send the next."""

    callers: int

    def __post_init__(self) -> None:
        if self.callers < 1:
            raise LoadError(f"--concurrency must be 1 or more, got {self.callers}")

    def __str__(self) -> str:
        return f"{self.callers} caller{'s' * (self.callers != 1)}"


@dataclass(frozen=True, slots=True)
class Open:
    """Requests that arrive at their own times, however busy the server is."""

    rate: float
    """Requests a second."""
    arrivals: Arrivals = "poisson"

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf"):
            raise LoadError(f"--rate must be above 0, got {self.rate:g}")

    def __str__(self) -> str:
        return f"{self.rate:g}/s"

    def times(self, until_s: float, seed: int) -> Iterator[float]:
        """When requests are due, in seconds from the start: evenly, or with exponentially distributed gaps."""
        if self.arrivals == "constant":
            yield from (number / self.rate for number in range(math.ceil(until_s * self.rate)))
            return
        draw = random.Random(seed)
        due = 0.0
        while (due := due + draw.expovariate(self.rate)) < until_s:
            yield due


Level = Closed | Open


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All levels, and the settings that their requests share."""

    levels: tuple[Level, ...]
    duration_s: float = 10.0
    """Length of a level's window, in which calls are counted, in seconds."""
    warmup_s: float = 1.0
    """Seconds of the same load before each window."""
    rows: int = 1
    """Rows of one request."""
    timeout_s: float = 60.0
    """Seconds from when a request was due; answers within it count as goodput."""
    priority: int = 0
    """1 is the highest; 0 leaves it to the server."""
    tasks_per_request: int = 1
    """More than one: PredictTasks."""
    stream: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Decoding settings of texts, as `Client.predict` takes them."""
    repeat_share: float = 0.0
    """Fraction of rows that were sent shortly before for the same task."""
    whole_prompts: bool = False
    """Send texts as whole prompts, without the tasks' templates."""
    max_in_flight: int = 1024
    """Most requests in flight in an open loop. Further due requests wait in this process, and their latency grows."""
    seed: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            LoadError: no levels, settings out of range, or settings that exclude each other.
        """
        if not self.levels:
            raise LoadError("give at least one --concurrency or --rate")
        if self.stream and (self.rows > 1 or self.tasks_per_request > 1):
            raise LoadError(
                "--stream sends one row of one task in a request; leave --rows and --tasks-per-request at 1"
            )
        for name, least in (("duration_s", 1e-3), ("timeout_s", 1e-3), ("rows", 1), ("tasks_per_request", 1)):
            if getattr(self, name) < least:
                option = name.removesuffix("_s").replace("_", "-")
                raise LoadError(f"--{option} must be {least:g} or more, got {getattr(self, name):g}")
        if not 0 <= self.repeat_share <= 1:
            raise LoadError(f"--repeat-share must lie between 0 and 1, got {self.repeat_share:g}")
