"""Takes a route's shares away where a version with one breaks a bound: an automatic rollback, by one commit.

Whoever sees it first among the servers of a registry commits; the others find the route changed and leave it alone. The
registry may be away for a while: then it is tried again. Knows no torch and no requests.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from serving.metrics import Metrics
from serving.rollout.comparison import Comparison, Comparisons, Routed, Window
from side_registry.errors import RegistryError
from side_registry.route import Bounds, Route

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often the comparisons are looked at."""
ROUNDING = 1e-9
"""Rates are as good as equal within this."""
RETRY_S = (1.0, 60.0)
"""First and longest pause where the registry cannot be written."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a version may not keep its share."""

    bound: Literal["error_rate", "latency", "disagreement"]
    version: int
    why: str


def fault(canary: Comparison, own: Comparison, bounds: Bounds) -> Fault | None:
    """The first bound that a version with a share breaks beside the alias's own, once enough was seen to tell.

    Errors: of its rows. Latency: once both have answered callers so many rows, for both are means. Disagreement: of the
    rows that both answered.
    """
    enough, version = bounds.min_rows, canary.version
    if canary.rows >= enough and (why := _too_many_errors(canary, own, bounds.error_rate)):
        return Fault("error_rate", version, f"{why} after {canary.rows} rows")
    if min(canary.answered, own.answered) >= enough and (why := _too_slow(canary, own, bounds.latency)):
        return Fault("latency", version, f"{why} after {canary.answered} rows")
    if canary.compared >= enough and (why := _too_different(canary, bounds.disagreement)):
        return Fault("disagreement", version, f"{why} after {canary.compared} rows")
    return None


def _too_many_errors(canary: Comparison, own: Comparison, bound: float | None) -> str | None:
    if bound is None or canary.error_rate <= own.error_rate + bound + ROUNDING:
        return None
    return f"error rate {canary.error_rate:.4g} > {own.error_rate:.4g} + {bound:.4g}"


def _too_slow(canary: Comparison, own: Comparison, bound: float | None) -> str | None:
    if bound is None or canary.latency_seconds <= own.latency_seconds * bound:
        return None
    return f"latency {canary.latency_seconds * 1000:.4g} ms > {bound:.4g} x {own.latency_seconds * 1000:.4g} ms"


def _too_different(canary: Comparison, bound: float | None) -> str | None:
    if bound is None or canary.disagreement <= bound + ROUNDING:
        return None
    return f"disagreement {canary.disagreement:.4g} > {bound:.4g}"


def judge(window: Window) -> Fault | None:
    """The first fault of a version with a share."""
    route = window.routed.route
    if route.bounds is None:
        return None
    own = window.comparison(window.routed.version)
    faults = (fault(window.comparison(version), own, route.bounds) for version in sorted(route.shares))
    return next(filter(None, faults), None)


class Ends(Protocol):
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
    ) -> int | None: ...


@dataclass(slots=True)
class _Try:
    """An attempt to end a route."""

    routed: Routed
    failures: int = 0
    next_s: float = 0.0
    """When to try again; never before it is another route, where that is infinite."""


class AutoRollback:
    """A thread that looks at all routes with bounds.

    Args:
        routes: (task, alias) to its route, as this server follows it now.
        author: of the commits.
        wake: told after a commit, so that this server sees it at once.
        withhold: told (task, alias, the generation that set its route) before the registry is, which may take its
            time or be away: from then on this server gives nobody a share of it.
        clock: seconds.
    """

    def __init__(
        self,
        registry: Ends,
        comparisons: Comparisons,
        routes: Callable[[], Mapping[tuple[str, str], Route]],
        author: str,
        wake: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        suspend: Callable[[str, str, int], None] = lambda task, alias, since: None,
    ) -> None:
        self._registry, self._comparisons, self._routes = registry, comparisons, routes
        self._withhold = suspend
        self._author, self._wake, self._metrics, self._clock = author, wake, metrics or Metrics(), clock
        self._tries: dict[tuple[str, str], _Try] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="judging", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float | None = 10.0) -> None:
        """End the thread; a commit in progress ends first, or is left behind after `timeout_s`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def look(self) -> None:
        """Judge every route once. All shares that must go are withheld here before the registry is told of any."""
        self._comparisons.forget_gone()
        bounded = [key for key, route in self._routes().items() if route.bounds is not None]
        self._tries = {key: tried for key, tried in self._tries.items() if key in bounded}
        faulty = [each for key in bounded if (each := self._due(*key))]
        for task, alias, tried, _ in faulty:
            self._withhold(task, alias, tried.routed.since)
        for task, alias, tried, found in faulty:
            self._end(task, alias, tried, found)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                self.look()
            except Exception:
                log.exception("judging the routes failed; it goes on")

    def _due(self, task: str, alias: str) -> tuple[str, str, _Try, Fault] | None:
        """A route that must end, if it is time to try."""
        window = self._comparisons.window(task, alias)
        found = judge(window) if window else None
        if not (window and found):
            return None
        tried = self._tries.get((task, alias))
        if tried is None or tried.routed != window.routed:
            tried = self._tries[task, alias] = _Try(window.routed)
        return (task, alias, tried, found) if self._clock() >= tried.next_s else None

    def _end(self, task: str, alias: str, tried: _Try, found: Fault) -> None:
        routed = tried.routed
        message = f"automatic rollback: version {found.version}: {found.why}"
        try:
            generation = self._registry.end_route(
                task, alias, routed.route, since=routed.since, author=self._author, message=message
            )
        except Exception as error:
            self._postpone(tried)
            unforeseen = None if isinstance(error, RegistryError) else error
            log.error("%s of %s@%s is tried again: %s", message, task, alias, error, exc_info=unforeseen)
            return
        tried.next_s = float("inf")
        if generation is None:
            log.info("%s@%s: %s; its route has changed already", task, alias, found.why)
        else:
            self._metrics.route_rolled_back(task, found.bound)
            log.error("%s of %s@%s, generation %d", message, task, alias, generation)
        self._wake()

    def _postpone(self, tried: _Try) -> None:
        pause = min(RETRY_S[0] * 2**tried.failures, RETRY_S[1])
        tried.failures, tried.next_s = min(tried.failures + 1, 16), self._clock() + pause
