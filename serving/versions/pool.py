"""The side pool: which versions are resident, what each alias is served by and how it is split, what did not load.

One immutable `PoolState` at a time; readers take one reference, the single writer (the reconciler) replaces it. A batch
in flight keeps its residents alive by its own references. Knows no torch, no stores, no loading.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from serving.errors import NotLoaded, VersionRefused
from side_registry.errors import UnknownAlias, UnknownTask, UnknownVersion
from side_registry.route import Route, pick
from side_registry.task import PRODUCTION

if TYPE_CHECKING:
    from side_registry.state import TaskState
from serving.engine import Key, Resident

NOTHING: Mapping = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a version is not resident, and when to try again."""

    reason: str
    """The error's stable reason."""
    why: str
    attempts: int
    transient: bool
    """The store was away, rather than the version being at fault."""
    at: float
    """time.monotonic() of the last attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """All that a request needs to find its side network. Never edited; made anew for each change."""

    generation: int = -1
    """The registry's generation that is fully applied: every version of it loaded, or failed. -1 before the first."""
    wanted: int = -1
    """The registry's newest generation known here, whose tasks these are."""
    tasks: Mapping[str, TaskState] = field(default_factory=lambda: NOTHING)
    """The registry's live tasks."""
    residents: Mapping[Key, Resident] = field(default_factory=lambda: NOTHING)
    aliases: Mapping[tuple[str, str], int] = field(default_factory=lambda: NOTHING)
    """(task, alias) to the version that serves it here: always a resident one."""
    routes: Mapping[tuple[str, str], Route] = field(default_factory=lambda: NOTHING)
    """(task, alias) to its route, as far as it is followed here: with those of its versions that are resident."""
    suspended_routes: Mapping[tuple[str, str], int] = field(default_factory=lambda: NOTHING)
    """(task, alias) to the generation that set its route, where nobody gets a share of that here: see `SidePool`."""
    failed: Mapping[Key, Failure] = field(default_factory=lambda: NOTHING)

    def resolve(
        self, task: str, *, version: int | None = None, alias: str | None = None, key: str | None = None
    ) -> Resident:
        """The resident that answers a request; `production` where neither version nor alias is named.

        Args:
            key: the request's, by which the alias's route leads it to a version; "": at random. None: the alias's own
                version, for who describes a task rather than answers.

        Raises:
            UnknownTask, UnknownVersion, UnknownAlias: not in the registry, or retired.
            NotLoaded: in the registry, but not on this server, not yet or (VersionRefused) not at all; says why.
        """
        state = self.task_state(task)
        if version is not None:
            return self._pinned(state, version)
        alias = PRODUCTION if alias is None else alias
        served = self.aliases.get((task, alias))
        if served is not None:
            return self.residents[task, served if key is None else self._led(state, alias, served, key)]
        if alias not in state.aliases:
            raise UnknownAlias(task, alias, tuple(state.aliases))
        newest = state.aliases[alias][-1]
        raise self._not_loaded(task, newest)

    def own(self, task: str, alias: str | None) -> Resident | None:
        """The version that the alias itself is served by; None where nothing is."""
        return self.residents.get((task, self.aliases.get((task, alias or ""), 0)))

    def beside(self, task: str, alias: str, chosen: int) -> tuple[Resident, ...]:
        """Who else answers what `alias` led to `chosen`, for the comparison: the shadows of its route.

        Beside a version with a share so does the alias's own, where the route bounds their disagreement.
        """
        route = self.routes.get((task, alias))
        if route is None:
            return ()
        compared = chosen in route.shares and route.bounds is not None and route.bounds.disagreement is not None
        own = (self.aliases[task, alias],) if compared else ()
        return tuple(self.residents[task, version] for version in (*own, *route.shadows) if version != chosen)

    def routed_since(self, task: str, alias: str, chosen: int) -> int | None:
        """The generation that set the route by which `alias` leads to `chosen`; None where no route does."""
        route = self.routes.get((task, alias))
        if route is None or chosen not in (self.aliases[task, alias], *route.shares):
            return None
        return self.tasks[task].routed.get(alias, 0)

    def task_state(self, task: str) -> TaskState:
        """Raises UnknownTask."""
        state = self.tasks.get(task)
        if state is None:
            raise UnknownTask(task, tuple(self.tasks))
        return state

    def _led(self, state: TaskState, alias: str, own: int, key: str) -> int:
        """By the registry's whole route: which version a key leads to does not depend on what else is loaded."""
        route = self.routes.get((state.name, alias))
        if route is None or not route.shares or self._withholds(state, alias):
            return own
        chosen = pick(state.routes[alias], own, key and f"{state.name}\n{key}")  # each task draws for itself
        return chosen if chosen in route.shares else own

    def _withholds(self, state: TaskState, alias: str) -> bool:
        suspended_routes = self.suspended_routes.get((state.name, alias))
        return suspended_routes is not None and suspended_routes == state.routed.get(alias)

    def _not_loaded(self, task: str, version: int) -> NotLoaded:
        failure = self.failed.get((task, version))
        if failure is None:
            return NotLoaded(task, version, "it is still loading")
        return (NotLoaded if failure.transient else VersionRefused)(task, version, failure.why)

    def _pinned(self, state: TaskState, version: int) -> Resident:
        found = state.versions.get(version)
        if found is None or found.retired:
            known = tuple(number for number, each in state.versions.items() if not each.retired)
            raise UnknownVersion(state.name, version, known, retired=found is not None)
        resident = self.residents.get((state.name, version))
        if resident is None:
            raise self._not_loaded(state.name, version)
        return resident


class SidePool:
    """Holds the current `PoolState`. Readers on any thread; one writer, but for `suspend`."""

    def __init__(self) -> None:
        self._state, self._writing = PoolState(), threading.Lock()

    def snapshot(self) -> PoolState:
        return self._state

    def replace(self, state: PoolState) -> PoolState:
        """Publish `state` by replacing one reference; returns what was there before."""
        with self._writing:
            before = self._state
            suspended_routes = before.suspended_routes
            self._state = (
                state
                if state.suspended_routes is suspended_routes
                else replace(state, suspended_routes=suspended_routes)
            )
            return before

    def suspend(self, task: str, alias: str, since: int) -> None:
        """Give nobody a share of the route that generation `since` set, while the registry still has it.

        For whoever cannot tell the registry that the route must end. Any thread.
        """
        with self._writing:
            kept = {key: each for key, each in self._state.suspended_routes.items() if key in self._state.routes}
            self._state = replace(self._state, suspended_routes={**kept, (task, alias): since})

    def holds(self, key: Key) -> bool:
        return key in self._state.residents

    def resolve(
        self, task: str, *, version: int | None = None, alias: str | None = None, key: str | None = None
    ) -> Resident:
        """As `PoolState.resolve`, on the current state."""
        return self._state.resolve(task, version=version, alias=alias, key=key)
