"""Automatic rollback: ends all shares of a route, by one commit, when a version with a share breaks a bound.

The first server that sees it commits; the other servers of the registry find the route changed and leave it alone.
While the registry cannot be written, the commit is tried again. Knows no torch and no requests.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from serving.metrics import Metrics
from serving.rollout.comparison import Comparison, Comparisons, Window
from side_registry.errors import RegistryError
from side_registry.route import Bounds, Route

log = logging.getLogger(__name__)

CHECK_S = 0.25
"""Seconds between two checks of all routes."""
STOP_S = 3.0
"""Longest wait for a commit in progress at the end, in seconds. The thread does not keep the process."""
ROUNDING = 1e-9
"""A rate that exceeds its bound by no more than this does not break it."""
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
"""Bounds of the pause before a failed commit is tried again; each pause is twice the one before it."""
MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Fault:
    """The bound that a version with a share has broken."""

    bound: Literal["error_rate", "latency", "disagreement"]
    version: int
    why: str
    """With the figures."""


def fault(canary: Comparison, main: Comparison, bounds: Bounds) -> Fault | None:
    """The first bound that a version with a share breaks, once `min_rows` rows were seen; None: it keeps to all.

    Error rate and latency are compared with `main`, the alias's main version. Errors are counted by its rows,
    disagreement by the rows that both answered. Both latencies are means, so each version must have answered callers
    `min_rows` rows.
    """
    enough = bounds.min_rows
    version = canary.version
    if canary.rows >= enough and (why := _too_many_errors(canary, main, bounds.error_rate)):
        return Fault("error_rate", version, f"{why} after {canary.rows} rows")
    if min(canary.answered, main.answered) >= enough and (why := _too_slow(canary, main, bounds.latency)):
        return Fault("latency", version, f"{why} after {canary.answered} rows")
    if canary.compared >= enough and (why := _too_different(canary, bounds.disagreement)):
        return Fault("disagreement", version, f"{why} after {canary.compared} rows")
    return None


def _too_many_errors(canary: Comparison, main: Comparison, bound: float | None) -> str | None:
    if bound is None or canary.error_rate <= main.error_rate + bound + ROUNDING:
        return None
    return f"error rate {_percent(canary.error_rate)} > {_percent(main.error_rate)} + {_percent(bound)}"


def _too_slow(canary: Comparison, main: Comparison, bound: float | None) -> str | None:
    if bound is None or canary.latency_seconds <= main.latency_seconds * bound:
        return None
    return f"latency {canary.latency_seconds * 1000:.4g} ms > {bound:.4g} x {main.latency_seconds * 1000:.4g} ms"


def _too_different(canary: Comparison, bound: float | None) -> str | None:
    if bound is None or canary.disagreement <= bound + ROUNDING:
        return None
    return f"disagreement {_percent(canary.disagreement)} > {_percent(bound)}"


def _percent(part: float) -> str:
    return f"{part * 100:.4g}%"


def judge(window: Window) -> Fault | None:
    """The first fault of any version with a share; None: all keep to their bounds, or there are none."""
    route = window.routed.route
    if route.bounds is None:
        return None
    main = window.comparison(window.routed.version)
    faults = (fault(window.comparison(version), main, route.bounds) for version in sorted(route.shares))
    return next(filter(None, faults), None)


class RouteRegistry(Protocol):
    """What is needed of a registry."""

    def end_route(
        self,
        task: str,
        alias: str,
        seen: Route,
        *,
        since: int | None = None,
        author: str | None = None,
        message: str = "",
    ) -> int | None:
        """End all shares of the route, if it is still `seen`; returns the commit's generation, None if it is not."""
        ...


@dataclass(slots=True)
class _Attempt:
    """To end a route."""

    window: Window
    """What was counted under it."""
    failures: int = 0
    next_s: float = 0.0
    """When to try next, by the clock. Infinite: done, until the alias has another route."""


class AutoRollback:
    """A thread that checks all routes with bounds.

    Args:
        routes: returns the routes that this server follows now, by (task, alias).
        author: of the commits.
        wake: called after a commit, so that this server follows it at once.
        suspend: called with task, alias and the registry generation that set the route, before the registry is written,
            which may be slow or unavailable. From then on this server gives the route's shares no traffic.
        clock: seconds.
    """

    def __init__(
        self,
        registry: RouteRegistry,
        comparisons: Comparisons,
        routes: Callable[[], Mapping[tuple[str, str], Route]],
        author: str,
        wake: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        suspend: Callable[[str, str, int], None] = lambda task, alias, since: None,
    ) -> None:
        self._registry = registry
        self._comparisons = comparisons
        self._routes = routes
        self._author = author
        self._wake = wake
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._suspend = suspend
        self._attempts: dict[tuple[str, str], _Attempt] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="auto-rollback", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float | None = STOP_S) -> None:
        """End the thread. Waits at most `timeout_s` seconds for a commit in progress."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def check(self) -> None:
        """Judge every route once. All routes that must end are suspended here before any of them is committed."""
        self._comparisons.forget_gone()
        bounded = [key for key, route in self._routes().items() if route.bounds is not None]
        self._attempts = {key: attempt for key, attempt in self._attempts.items() if key in bounded}
        due = [ending for key in bounded if (ending := self._due(*key))]
        for task, alias, attempt, _ in due:
            self._suspend(task, alias, attempt.window.routed.since)
        for task, alias, attempt, broken in due:
            self._end(task, alias, attempt, broken)

    def _run(self) -> None:
        while not self._stopping.wait(CHECK_S):
            try:
                self.check()
            except Exception:
                log.exception("checking the routes failed; they are checked again")

    def _due(self, task: str, alias: str) -> tuple[str, str, _Attempt, Fault] | None:
        """The route, if it must end and it is time to try."""
        window = self._comparisons.window(task, alias)
        broken = judge(window) if window else None
        if not (window and broken):
            return None
        attempt = self._attempts.get((task, alias))
        if attempt is None or attempt.window.routed != window.routed:
            attempt = self._attempts[task, alias] = _Attempt(window)
        attempt.window = window
        return (task, alias, attempt, broken) if self._clock() >= attempt.next_s else None

    def _end(self, task: str, alias: str, attempt: _Attempt, broken: Fault) -> None:
        """Commit the end of the route's shares."""
        routed = attempt.window.routed
        window = attempt.window
        seen = "; ".join(str(window.comparison(version)) for version in (broken.version, routed.version))
        message = f"automatic rollback: version {broken.version}: {broken.why} ({seen})"
        try:
            generation = self._registry.end_route(
                task, alias, routed.route, since=routed.since, author=self._author, message=message
            )
        except Exception as error:
            self._postpone(attempt)
            unforeseen = None if isinstance(error, RegistryError) else error
            log.error("%s of %s@%s is tried again: %s", message, task, alias, error, exc_info=unforeseen)
            return
        attempt.next_s = float("inf")
        self._comparisons.keep(task, alias, window, f"version {broken.version}: {broken.why}", generation or 0)
        if generation is None:
            log.info("%s@%s: %s; its route has changed already", task, alias, broken.why)
        else:
            self._metrics.route_rolled_back(task, broken.bound)
            log.error("%s of %s@%s, generation %d", message, task, alias, generation)
        self._wake()

    def _postpone(self, attempt: _Attempt) -> None:
        pause_s = min(FIRST_RETRY_S * 2**attempt.failures, LONGEST_RETRY_S)
        attempt.failures = min(attempt.failures + 1, MAX_DOUBLINGS)
        attempt.next_s = self._clock() + pause_s
