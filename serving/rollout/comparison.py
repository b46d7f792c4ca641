"""How the versions of an alias's route compare with the alias's own version: counted since the route's last change.

Pure statistics: knows no device, no registry and no queue. Any thread may read; one writes.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from ladder.answers import Answer
from serving.rollout.agreement import Said, compare, in_words
from serving.versions import PoolState
from side_registry.route import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was seen of one version."""

    version: int
    answers: bool = True
    """It answers callers (the alias's own version, or one with a share), and not only beside them."""
    rows: int = 0
    """That it was asked, by callers or beside them, and answered or failed."""
    failed: int = 0
    compared: int = 0
    """Rows that both it and the alias's own version answered."""
    agreed: int = 0
    drift: float = 0.0
    """Mean over the compared rows, 0 to 1."""
    latency_seconds: float = 0.0
    """Mean of its requests, callers' only. One that was left before its answer counts as what it took until then, or
    as the mean where that is more."""
    cost_seconds: float = 0.0
    """Time on the device for a row beside callers' rows."""
    dropped: int = 0
    """Rows not compared because the server had no time for them."""
    answered: int = 0
    """Rows of its requests, callers' only, with those of requests that were left before their answer."""

    @property
    def error_rate(self) -> float:
        return self.failed / self.rows if self.rows else 0.0

    @property
    def disagreement(self) -> float:
        return (self.compared - self.agreed) / self.compared if self.compared else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """One input on which a version differs from the alias's own."""

    time: float
    """Seconds since 1970."""
    version: int
    prompt: str
    expected: str
    """What the alias's own version answered, in words."""
    found: str
    drift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """All that is known of one alias's route here."""

    task: str
    alias: str
    version: int
    """The alias's own, with which the others are compared."""
    comparisons: tuple[Comparison, ...]
    """One for each version of the route; the alias's own first."""
    disagreements: tuple[Disagreement, ...] = ()
    """Newest first. None are kept unless the server was told to keep inputs."""
    since: int = 0
    """Generation of the route's last change: everything here was seen since. 0: not known."""
    keeps_inputs: bool = False


@dataclass(frozen=True, slots=True)
class Routed:
    """An alias's traffic, as the registry has it. Another one is another window."""

    version: int
    """The alias's own."""
    route: Route
    since: int = 0
    """Generation of the route's last change; 0: not known."""


def routed_of(state: PoolState, task: str, alias: str) -> Routed | None:
    """As the registry has it, whatever of it is resident; None where the alias has no route."""
    found = state.tasks.get(task)
    if found is None or alias not in found.routes:
        return None
    return Routed(found.at(alias), found.routes[alias], found.routed.get(alias, 0))


@dataclass(slots=True)
class _Tally:
    """Sums of one version."""

    rows: int = 0
    failed: int = 0
    compared: int = 0
    agreed: int = 0
    drift: float = 0.0
    requests: int = 0
    seconds: float = 0.0
    left: int = 0
    """Rows of requests that were left before their answer."""
    asked: int = 0
    """Rows beside callers'."""
    cost: float = 0.0
    dropped: int = 0


@dataclass(slots=True)
class Window:
    """What was seen of one alias under one route. Versions that the route does not name are not counted."""

    routed: Routed
    kept: int = 0
    """Disagreements to keep, with their inputs."""
    _tallies: dict[int, _Tally] = field(init=False)
    _disagreements: deque[Disagreement] = field(init=False)
    _lock: Lock = field(init=False, default_factory=Lock)

    def __post_init__(self) -> None:
        versions = (self.routed.version, *self.routed.route.shares, *self.routed.route.shadows)
        self._tallies = {version: _Tally() for version in versions}
        self._disagreements = deque(maxlen=self.kept)

    def __contains__(self, version: int) -> bool:
        return version in self._tallies

    def answered(self, version: int, rows: int, failed: int, seconds: float) -> None:
        """A request of a caller's."""
        with self._lock:
            tally = self._tallies[version]
            tally.rows, tally.failed = tally.rows + rows, tally.failed + failed
            tally.requests, tally.seconds = tally.requests + 1, tally.seconds + seconds

    def left(self, version: int, rows: int, seconds: float) -> None:
        """A request whose caller waited so long in vain. Nobody knows whether its rows would have failed."""
        with self._lock:
            tally = self._tallies[version]
            seconds = max(seconds, _mean(tally.seconds, tally.requests))
            tally.left, tally.requests, tally.seconds = tally.left + rows, tally.requests + 1, tally.seconds + seconds

    def refused(self, version: int, rows: int) -> None:
        """Inputs of a caller's that it makes no prompt of, and the alias's own version does."""
        with self._lock:
            tally = self._tallies[version]
            tally.rows, tally.failed = tally.rows + rows, tally.failed + rows

    def asked(self, version: int, *, failed: bool) -> None:
        """One row beside callers' ended."""
        with self._lock:
            tally = self._tallies[version]
            tally.rows, tally.asked, tally.failed = tally.rows + 1, tally.asked + 1, tally.failed + failed

    def spent(self, version: int, seconds: float) -> None:
        """On the device, for rows beside callers'."""
        with self._lock:
            self._tallies[version].cost += seconds

    def dropped(self, version: int, rows: int) -> None:
        """Not asked, or given up."""
        with self._lock:
            self._tallies[version].dropped += rows

    def compare(self, version: int, prompt: str, expected: Said, found: Said) -> tuple[bool, float]:
        """One row that both it and the alias's own version answered; returns whether they agree, and their drift."""
        agreed, drift = compare(expected, found)
        with self._lock:
            tally = self._tallies[version]
            tally.compared, tally.agreed, tally.drift = tally.compared + 1, tally.agreed + agreed, tally.drift + drift
            if not agreed and self.kept:
                self._disagreements.append(_disagreement(version, prompt, expected[1], found[1], drift))
        return agreed, drift

    def comparison(self, version: int) -> Comparison:
        with self._lock:
            tally = self._tallies[version]
            return Comparison(
                version=version,
                answers=version not in self.routed.route.shadows,
                rows=tally.rows,
                failed=tally.failed,
                compared=tally.compared,
                agreed=tally.agreed,
                drift=_mean(tally.drift, tally.compared),
                latency_seconds=_mean(tally.seconds, tally.requests),
                cost_seconds=_mean(tally.cost, tally.asked),
                dropped=tally.dropped,
                answered=tally.rows - tally.asked + tally.left,
            )

    def comparisons(self) -> tuple[Comparison, ...]:
        return tuple(map(self.comparison, self._tallies))

    def disagreements(self) -> tuple[Disagreement, ...]:
        with self._lock:
            return tuple(reversed(self._disagreements))


class Comparisons:
    """The windows of all aliases that have a route.

    Args:
        routed: how an alias's traffic is now; None: it has no route, or is gone. Nobody has one where it is left out.
        kept: disagreements to keep of each alias, with their inputs. 0: none.
    """

    def __init__(self, routed: Callable[[str, str], Routed | None] = lambda *_: None, kept: int = 0) -> None:
        self._routed, self._kept = routed, kept
        self._windows: dict[tuple[str, str], Window] = {}
        self._lock = Lock()

    def window(self, task: str, alias: str) -> Window | None:
        """That of the route as it is now; a new one where it has changed. None: there is no route."""
        with self._lock:
            routed, window = self._routed(task, alias), self._windows.get((task, alias))
            if routed is None:
                self._windows.pop((task, alias), None)
                return None
            if window is None or window.routed != routed:
                window = self._windows[task, alias] = Window(routed, self._kept)
            return window

    def forget_gone(self) -> None:
        """Drop what was seen under routes that are over, and the inputs kept with it."""
        with self._lock:
            self._windows = {key: each for key, each in self._windows.items() if self._routed(*key) == each.routed}

    def read(self, task: str, alias: str) -> Compared | None:
        """None: the alias has no route."""
        window = self.window(task, alias)
        if window is None:
            return None
        return Compared(
            task=task,
            alias=alias,
            version=window.routed.version,
            comparisons=window.comparisons(),
            disagreements=window.disagreements(),
            since=window.routed.since,
            keeps_inputs=self._kept > 0,
        )


def _disagreement(version: int, prompt: str, expected: Answer, found: Answer, drift: float) -> Disagreement:
    return Disagreement(
        time=time.time(),
        version=version,
        prompt=prompt,
        expected=in_words(expected),
        found=in_words(found),
        drift=drift,
    )


def _mean(total: float, count: int) -> float:
    return total / count if count else 0.0
