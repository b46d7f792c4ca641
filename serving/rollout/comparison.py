"""Compares the versions of an alias's route with the alias's main version: counts since the route's last change.

Statistics only: knows no device, no registry and no queue. Any thread may read; one writes.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from ladder.answers import Answer
from serving.rollout.agreement import VersionAnswer, compare, in_words
from serving.versions import PoolState
from side_registry.route import Route

MAX_ROLLED_BACK = 256
"""Aliases whose comparison is kept after an automatic rollback, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was counted of one version."""

    version: int
    answers: bool = True
    """It answers callers: the alias's main version, or one with a share. False for a shadow."""
    rows: int = 0
    """Rows that it answered or failed, for callers and in shadow."""
    failed: int = 0
    compared: int = 0
    """Rows that it and the alias's main version both answered."""
    agreed: int = 0
    drift: float = 0.0
    """Mean over the compared rows, 0 to 1."""
    latency_seconds: float = 0.0
    """Mean of callers' requests. One that its caller abandoned counts with the time until then, or with the mean where
    that is more."""
    cost_seconds: float = 0.0
    """Device time of a row in shadow."""
    dropped: int = 0
    """Rows not compared because the server had no time for them."""
    answered: int = 0
    """Rows of callers' requests, including abandoned ones."""

    def __str__(self) -> str:
        """`version 3: 61 rows, 0 failed, 51 of 61 agreed, drift 0.12, 12.5 ms`."""
        parts = [f"{self.rows} rows", f"{self.failed} failed"]
        if self.compared:
            parts += [f"{self.agreed} of {self.compared} agreed", f"drift {self.drift:.4g}"]
        if self.latency_seconds:
            parts.append(f"{self.latency_seconds * 1000:.4g} ms")
        return f"version {self.version}: {', '.join(parts)}"

    @property
    def error_rate(self) -> float:
        """Failed rows over all rows."""
        return self.failed / self.rows if self.rows else 0.0

    @property
    def disagreement(self) -> float:
        """Rows that do not agree over compared rows."""
        return (self.compared - self.agreed) / self.compared if self.compared else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """One input on which a version differs from the alias's main version."""

    time: float
    """Seconds since 1970."""
    version: int
    prompt: str
    """Of an input with images, with the digest of each of them."""
    expected: str
    """What the alias's main version answered, as text."""
    found: str
    """What this version answered, as text."""
    drift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """All that this server knows of one alias's route."""

    task: str
    alias: str
    version: int
    """The alias's main version, which the others are compared with."""
    comparisons: tuple[Comparison, ...]
    """One for each version of the route; the alias's main version first."""
    disagreements: tuple[Disagreement, ...] = ()
    """Newest first. Empty unless the server is configured to keep inputs."""
    since: int = 0
    """Registry generation of the route's last change; everything here was counted since. 0: not known."""
    keeps_inputs: bool = False


@dataclass(frozen=True, slots=True)
class Routed:
    """An alias's traffic, as the registry has it. Each value has a window of its own."""

    version: int
    """The alias's main version."""
    route: Route
    since: int = 0
    """Registry generation of the route's last change; 0: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """The comparison because of which this server ended all shares of an alias's traffic."""

    why: str
    """The bound that was broken, in words."""
    generation: int
    """Registry generation of the commit; 0: somebody else changed the route just before."""
    time: float
    """Seconds since 1970."""
    routed: Routed
    """The alias's traffic before."""
    comparisons: tuple[Comparison, ...]
    disagreements: tuple[Disagreement, ...]

    def is_of(self, routed: Routed | None) -> bool:
        """Whether the alias has had no other route since: it has none, the old one, or the shadows that were left."""
        rest = Route(shadows=self.routed.route.shadows)
        return routed in (None, self.routed) or (routed.version, routed.route) == (self.routed.version, rest)


def routed_of(state: PoolState, task: str, alias: str) -> Routed | None:
    """The alias's traffic as the registry has it, resident or not; None where the alias has no route."""
    entry = state.tasks.get(task)
    if entry is None or alias not in entry.routes:
        return None
    return Routed(entry.at(alias), entry.routes[alias], entry.routed.get(alias, 0))


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
    abandoned: int = 0
    """Rows of requests that their callers abandoned."""
    in_shadow: int = 0
    """Rows that it was asked in shadow."""
    cost: float = 0.0
    dropped: int = 0


@dataclass(slots=True)
class Window:
    """What was counted for one alias under one route. Versions that the route does not name are not counted."""

    routed: Routed
    kept: int = 0
    """How many disagreements to keep, with their inputs."""
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
        """Count a caller's request."""
        with self._lock:
            tally = self._tallies[version]
            tally.rows += rows
            tally.failed += failed
            tally.requests += 1
            tally.seconds += seconds

    def abandoned(self, version: int, rows: int, seconds: float) -> None:
        """Count a request that its caller abandoned after so long. Whether its rows would have failed is not known."""
        with self._lock:
            tally = self._tallies[version]
            seconds = max(seconds, _mean(tally.seconds, tally.requests))
            tally.abandoned += rows
            tally.requests += 1
            tally.seconds += seconds

    def unrenderable(self, version: int, rows: int) -> None:
        """Count as failed inputs that its template makes no prompt of, though the alias's main version's does."""
        with self._lock:
            tally = self._tallies[version]
            tally.rows += rows
            tally.failed += rows

    def asked(self, version: int, *, failed: bool) -> None:
        """Count a row that it answered, or failed, in shadow."""
        with self._lock:
            tally = self._tallies[version]
            tally.rows += 1
            tally.in_shadow += 1
            tally.failed += failed

    def add_device_time(self, version: int, seconds: float) -> None:
        """Count device time of its rows in shadow."""
        with self._lock:
            self._tallies[version].cost += seconds

    def dropped(self, version: int, rows: int) -> None:
        """Count rows that it was not asked in shadow, or was given up for."""
        with self._lock:
            self._tallies[version].dropped += rows

    def compare(self, version: int, prompt: str, expected: VersionAnswer, actual: VersionAnswer) -> tuple[bool, float]:
        """Compare a row that both the alias's main version and this one answered; returns agreement and drift."""
        agreed, drift = compare(expected, actual)
        with self._lock:
            tally = self._tallies[version]
            tally.compared += 1
            tally.agreed += agreed
            tally.drift += drift
            if not agreed and self.kept:
                self._disagreements.append(_disagreement(version, prompt, expected[1], actual[1], drift))
        return agreed, drift

    def comparison(self, version: int) -> Comparison:
        """What was counted of one version of the route."""
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
                cost_seconds=_mean(tally.cost, tally.in_shadow),
                dropped=tally.dropped,
                answered=tally.rows - tally.in_shadow + tally.abandoned,
            )

    def comparisons(self) -> tuple[Comparison, ...]:
        """Of all versions of the route, the alias's main version first."""
        return tuple(map(self.comparison, self._tallies))

    def disagreements(self) -> tuple[Disagreement, ...]:
        """Those that were kept, newest first."""
        with self._lock:
            return tuple(reversed(self._disagreements))


class Comparisons:
    """The windows of all aliases that have a route.

    Args:
        routed: takes task and alias, returns the traffic now; None: the alias has no route, or does not exist.
        kept: how many disagreements to keep of each alias, with their inputs.
    """

    def __init__(self, routed: Callable[[str, str], Routed | None] = lambda *_: None, kept: int = 0) -> None:
        self._routed = routed
        self._kept = kept
        self._windows: dict[tuple[str, str], Window] = {}
        self._rolled_back: dict[tuple[str, str], RolledBack] = {}
        """Oldest first, MAX_ROLLED_BACK at most."""
        self._lock = Lock()

    def window(self, task: str, alias: str) -> Window | None:
        """The window of the alias's route as it is now, a new one if the route has changed. None: there is no route."""
        with self._lock:
            routed = self._routed(task, alias)
            window = self._windows.get((task, alias))
            if routed is None:
                self._windows.pop((task, alias), None)
                return None
            if window is None or window.routed != routed:
                window = self._windows[task, alias] = Window(routed, self._kept)
            return window

    def forget_gone(self) -> None:
        """Drop the windows of routes that have ended, and the inputs kept in them.

        The comparison of an automatic rollback is kept until the alias gets another route.
        """
        with self._lock:
            self._windows = {
                key: window for key, window in self._windows.items() if self._routed(*key) == window.routed
            }
            self._rolled_back = {
                key: rolled_back
                for key, rolled_back in self._rolled_back.items()
                if rolled_back.is_of(self._routed(*key))
            }

    def keep(self, task: str, alias: str, window: Window, why: str, generation: int) -> None:
        """Keep a window because of which the alias's shares were ended, until the alias gets another route."""
        rolled_back = RolledBack(
            why=why,
            generation=generation,
            time=time.time(),
            routed=window.routed,
            comparisons=window.comparisons(),
            disagreements=window.disagreements(),
        )
        with self._lock:
            self._rolled_back.pop((task, alias), None)
            self._rolled_back[task, alias] = rolled_back
            if len(self._rolled_back) > MAX_ROLLED_BACK:
                del self._rolled_back[next(iter(self._rolled_back))]

    def rolled_back(self, task: str, alias: str) -> RolledBack | None:
        """The comparison because of which this server ended the alias's shares; None: it did not, or it is outdated."""
        with self._lock:
            rolled_back = self._rolled_back.get((task, alias))
            return rolled_back if rolled_back and rolled_back.is_of(self._routed(task, alias)) else None

    def read(self, task: str, alias: str) -> Compared | None:
        """All that is known of the alias's route; None: it has none."""
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


def _disagreement(version: int, prompt: str, expected: Answer, actual: Answer, drift: float) -> Disagreement:
    return Disagreement(
        time=time.time(),
        version=version,
        prompt=prompt,
        expected=in_words(expected),
        found=in_words(actual),
        drift=drift,
    )


def _mean(total: float, count: int) -> float:
    return total / count if count else 0.0
