"""What a server should hold and serve: pure functions of the registry's state and of what is loaded.

An alias is served by the newest version of its registry stack that is loaded; where none is, by whatever serves it now.
So an alias never leaves a version that works for one that does not. Nor does it visit a third one on its way to a
version that is still to be loaded: what it comes from serves until then, retired or not. Its route is followed while
its own version serves it, with those of the route's versions that are loaded; the shares of the others fall to its own
version.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from serving.engine import Resident
from serving.versions.pool import PoolState
from side_registry.route import Route
from side_registry.state import TaskState


def serve(
    task: TaskState, loaded: Set[int], current: Mapping[str, int], failed: Set[int] = frozenset()
) -> dict[str, int]:
    """Alias to the version that serves it. An alias without one is left out.

    Args:
        loaded: this task's resident versions.
        current: alias to version, as served now.
        failed: versions that did not load.
    """
    served = {}
    for alias, stack in task.aliases.items():
        now, comes = current.get(alias), stack[-1] not in loaded and stack[-1] not in failed
        usable = (version for version in reversed(stack) if version in loaded and not task.versions[version].retired)
        version = now if comes and now in stack else next(usable, now)
        if version in loaded:
            served[alias] = version
    return served


def follow(task: TaskState, alias: str, served: int | None, loaded: Set[int]) -> Route | None:
    """The alias's route with those of its versions that are loaded; None where nothing of it can be followed.

    Args:
        served: the version that serves the alias.
    """
    route = task.routes.get(alias)
    if route is None or served != task.aliases[alias][-1]:
        return None
    shares = {version: share for version, share in route.shares.items() if version in loaded}
    shadows = tuple(version for version in route.shadows if version in loaded)
    found = Route(shares=shares, shadows=shadows, bounds=route.bounds if shares else None)
    return None if found.is_plain else found


def load_order(task: TaskState, missing: Iterable[int]) -> list[tuple[int, int]]:
    """(urgency, version), most urgent first: where aliases and routes lead, where aliases were, then the newest."""
    now = {stack[-1] for stack in task.aliases.values()}.union(*(route.versions for route in task.routes.values()))
    before = {version for stack in task.aliases.values() for version in stack}
    ranked = ((0 if v in now else 1 if v in before else 2, v) for v in missing)
    return sorted(ranked, key=lambda each: (each[0], -each[1]))


def place(state: PoolState, name: str, task: TaskState | None, before: TaskState | None) -> PoolState:
    """`state` with one task's aliases, routes, residents and failures as they should be for `task`; None: it is gone.

    What stays resident is what is not retired, and what still serves an alias. `before` is the task as `state` has it.
    """
    versions = {*(task.versions if task else ()), *(before.versions if before else ())}
    aliases = {*(task.aliases if task else ()), *(before.aliases if before else ())}
    loaded = {version for version in versions if (name, version) in state.residents}
    current = {alias: state.aliases[name, alias] for alias in aliases if (name, alias) in state.aliases}
    failed = {version for version in versions if (name, version) in state.failed}
    served = serve(task, loaded, current, failed) if task else {}
    routes = {alias: follow(task, alias, served.get(alias), loaded) for alias in task.routes} if task else {}
    stay = {*(task.live if task else ()), *served.values()}
    return replace(
        state,
        aliases=_changed(state.aliases, {(name, alias): served.get(alias) for alias in aliases}),
        routes=_changed(state.routes, {(name, alias): routes.get(alias) for alias in aliases}),
        residents=_changed(state.residents, {(name, version): None for version in loaded - stay}),
        failed=_changed(state.failed, {(name, version): None for version in versions - stay}),
    )


def add(state: PoolState, resident: Resident) -> PoolState:
    """`state` with one more version loaded, which may now serve aliases, and let go of what served them."""
    task = state.tasks[resident.task]
    residents = {**state.residents, resident.key: resident}
    return place(
        replace(state, residents=residents, failed=_changed(state.failed, {resident.key: None})),
        resident.task,
        task,
        task,
    )


def _changed(mapping: Mapping, changes: Mapping) -> Mapping:
    """A copy with `changes` made, None meaning to remove; the same object where nothing changes."""
    if all(mapping.get(key) == value for key, value in changes.items()):
        return mapping
    copy = {**mapping, **changes}
    for key in (key for key, value in changes.items() if value is None):
        del copy[key]
    return copy
