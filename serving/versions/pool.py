"""The side pool: which versions are resident, which version serves each alias, its route, and what did not load.

There is one immutable `PoolState` at a time. Readers take one reference; the single writer (the reconciler) replaces
it. A batch in flight keeps its residents alive by its own references. Knows no torch, no stores, no loading.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from serving.engine import Key, Resident
from serving.errors import NotLoaded, VersionRefused
from side_registry.errors import UnknownAlias, UnknownGroup, UnknownTask
from side_registry.groups import GroupState, GroupVersion
from side_registry.route import Route, pick
from side_registry.specs.task import PRODUCTION
from side_registry.state import TaskState

NOTHING: Mapping = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a version is not resident, and when to try again."""

    reason: str
    """The error's stable reason."""
    why: str
    """The error's message."""
    attempts: int
    transient: bool
    """A later attempt may succeed: the store was away, for example."""
    at: float
    """Time of the last attempt, by time.monotonic()."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """All that a request needs to find its side network. Immutable: each change makes a new one."""

    generation: int = -1
    """The registry's generation that is applied: no request is answered by an older one's versions. Each version of it
    is loaded, has failed, or is still to be loaded since the start and has none that answers in its place. -1 before
    the first."""
    wanted: int = -1
    """The newest generation of the registry that is known here: `tasks` is its state."""
    tasks: Mapping[str, TaskState] = field(default_factory=lambda: NOTHING)
    """The registry's live tasks."""
    groups: Mapping[str, GroupState] = field(default_factory=lambda: NOTHING)
    """The registry's live groups, by name."""
    residents: Mapping[Key, Resident] = field(default_factory=lambda: NOTHING)
    aliases: Mapping[tuple[str, str], int] = field(default_factory=lambda: NOTHING)
    """(task, alias) to the version that serves it on this server: always a resident one."""
    routes: Mapping[tuple[str, str], Route] = field(default_factory=lambda: NOTHING)
    """(task, alias) to the route that this server follows: the registry's, without versions that are not resident."""
    suspended_routes: Mapping[tuple[str, str], int] = field(default_factory=lambda: NOTHING)
    """Routes suspended on this server: (task, alias) to the registry generation that set the route."""
    failed: Mapping[Key, Failure] = field(default_factory=lambda: NOTHING)

    def resolve(
        self, task: str, *, version: int | None = None, alias: str | None = None, key: str | None = None
    ) -> Resident:
        """The resident that answers a request; `production` where neither version nor alias is named.

        Args:
            key: the request's route key, by which the alias's route chooses a version; "" chooses at random. None
                ignores the route and returns the version that serves the alias itself, as descriptions of a task need.

        Raises:
            UnknownTask, UnknownVersion, UnknownAlias: not in the registry, or retired.
            NotLoaded: in the registry, but not loaded on this server yet; says why.
            VersionRefused: in the registry, and it cannot be loaded on this server.
        """
        state = self.task_state(task)
        if version is not None:
            return self._pinned(state, version)
        alias = PRODUCTION if alias is None else alias
        served = self.aliases.get((task, alias))
        if served is not None:
            return self.residents[task, served if key is None else self._by_route(state, alias, served, key)]
        if alias not in state.aliases:
            raise UnknownAlias(task, alias, tuple(state.aliases))
        raise self._not_loaded(task, state.aliases[alias][-1])

    def is_loading(self, key: Key) -> bool:
        """Whether this version is still to be loaded: it is in the registry, and was not tried yet."""
        task = self.tasks.get(key[0])
        entry = task and task.versions.get(key[1])
        return bool(entry) and not entry.retired and key not in self.residents and key not in self.failed

    def awaited(self, task: str, *, version: int | None = None, alias: str | None = None) -> Key | None:
        """The version whose load a request should wait for; None if waiting would not change what `resolve` does."""
        state = self.tasks.get(task)
        alias = PRODUCTION if alias is None else alias
        if state is None or (version is None and (task, alias) in self.aliases):
            return None
        versions = reversed(state.aliases.get(alias, ())) if version is None else (version,)
        return next(((task, number) for number in versions if self.is_loading((task, number))), None)

    def own(self, task: str, alias: str | None) -> Resident | None:
        """The resident that serves the alias itself, whatever its route; None if there is none."""
        return self.residents.get((task, self.aliases.get((task, alias or ""), 0)))

    def shadows(self, task: str, alias: str, chosen: int) -> tuple[Resident, ...]:
        """Residents that answer the same rows for the comparison, where `alias` led to version `chosen`.

        These are the shadows of the alias's route. For a version with a share it is also the version that serves the
        alias, if the route bounds their disagreement.
        """
        route = self.routes.get((task, alias))
        if route is None:
            return ()
        compared = chosen in route.shares and route.bounds is not None and route.bounds.disagreement is not None
        versions = (self.aliases[task, alias], *route.shadows) if compared else route.shadows
        return tuple(self.residents[task, version] for version in versions if version != chosen)

    def routed_since(self, task: str, alias: str, chosen: int) -> int | None:
        """The registry generation that set the route by which `alias` leads to `chosen`; None if no route does."""
        route = self.routes.get((task, alias))
        if route is None or chosen not in (self.aliases[task, alias], *route.shares):
            return None
        return self.tasks[task].routed.get(alias, 0)

    def task_state(self, task: str) -> TaskState:
        """The registry's state of a task. Raises UnknownTask."""
        state = self.tasks.get(task)
        if state is None:
            raise UnknownTask(task, tuple(self.tasks))
        return state

    def group(self, name: str) -> GroupVersion:
        """The tasks that a group has now. Raises UnknownGroup."""
        group = self.groups.get(name)
        if group is None:
            raise UnknownGroup(name, tuple(self.groups))
        return group.current

    def _by_route(self, state: TaskState, alias: str, served: int, key: str) -> int:
        """The version for a key. It is drawn from the registry's whole route: what else is loaded changes no draw."""
        route = self.routes.get((state.name, alias))
        if route is None or not route.shares or self._is_suspended(state, alias):
            return served
        chosen = pick(state.routes[alias], served, key and f"{state.name}\n{key}")  # each task draws for itself
        return chosen if chosen in route.shares else served

    def _is_suspended(self, state: TaskState, alias: str) -> bool:
        since = self.suspended_routes.get((state.name, alias))
        return since is not None and since == state.routed.get(alias)

    def _not_loaded(self, task: str, version: int) -> NotLoaded:
        failure = self.failed.get((task, version))
        if failure is None:
            return NotLoaded(task, version, "it is still loading")
        return (NotLoaded if failure.transient else VersionRefused)(task, version, failure.why)

    def _pinned(self, state: TaskState, version: int) -> Resident:
        """Raises UnknownVersion, NotLoaded, VersionRefused."""
        state.live_entry(version)
        resident = self.residents.get((state.name, version))
        if resident is None:
            raise self._not_loaded(state.name, version)
        return resident


class SidePool:
    """Holds the current `PoolState`. Readers on any thread; one writer, except for `suspend`."""

    def __init__(self) -> None:
        self._state = PoolState()
        self._writing = threading.Lock()

    def snapshot(self) -> PoolState:
        """The current state."""
        return self._state

    def replace(self, state: PoolState) -> PoolState:
        """Publish `state` by replacing one reference; its suspended routes stay the current ones.

        Returns:
            the state before.
        """
        with self._writing:
            before = self._state
            if state.suspended_routes is not before.suspended_routes:
                state = replace(state, suspended_routes=before.suspended_routes)
            self._state = state
            return before

    def suspend(self, task: str, alias: str, since: int) -> None:
        """Send no traffic by the route that generation `since` set, as long as the registry still has that route.

        For a rollback while the registry cannot be written. May be called on any thread.
        """
        with self._writing:
            suspended = {key: then for key, then in self._state.suspended_routes.items() if key in self._state.routes}
            self._state = replace(self._state, suspended_routes={**suspended, (task, alias): since})

    def holds(self, key: Key) -> bool:
        """Whether this version is resident."""
        return key in self._state.residents

    def resolve(
        self, task: str, *, version: int | None = None, alias: str | None = None, key: str | None = None
    ) -> Resident:
        """As `PoolState.resolve`, on the current state."""
        return self._state.resolve(task, version=version, alias=alias, key=key)
