"""Decides which versions a server keeps and serves: pure functions of the registry's state and of what is loaded.

An alias has a stack of versions in the registry; the last is the one it points to. The newest loaded version of the
stack serves the alias; if none is loaded, the version that serves it now goes on. So an alias never leaves a version
that works for one that does not. While the version it points to is still to be loaded, the current one goes on, retired
or not: no third version answers in between.

The alias's route is followed while the version it points to serves it. Versions of the route that are not loaded are
left out, and their shares go to the version that serves the alias.
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
    """Alias to the version that serves it. An alias that no version can serve is left out.

    Args:
        loaded: this task's resident versions.
        current: alias to the version that serves it now.
        failed: versions that did not load.
    """
    served = {}
    for alias, stack in task.aliases.items():
        now = current.get(alias)
        is_loading = stack[-1] not in loaded and stack[-1] not in failed
        usable = (version for version in reversed(stack) if version in loaded and not task.versions[version].retired)
        version = now if is_loading and now in stack else next(usable, now)
        if version in loaded:
            served[alias] = version
    return served


def follow(task: TaskState, alias: str, served: int | None, loaded: Set[int]) -> Route | None:
    """The alias's route without versions that are not loaded; None if nothing of it can be followed.

    Args:
        served: the version that serves the alias.
    """
    route = task.routes.get(alias)
    if route is None or served != task.aliases[alias][-1]:
        return None
    shares = {version: share for version, share in route.shares.items() if version in loaded}
    shadows = tuple(version for version in route.shadows if version in loaded)
    followed = Route(shares=shares, shadows=shadows, bounds=route.bounds if shares else None)
    return None if followed.is_plain else followed


def load_order(task: TaskState, missing: Iterable[int]) -> list[tuple[int, int]]:
    """(urgency, version), most urgent first, newest first within an urgency.

    Urgency 0: an alias points to the version or a route names it. 1: it is elsewhere in an alias's stack. 2: the rest.
    """
    routed = (version for route in task.routes.values() for version in route.versions)
    current = {*(stack[-1] for stack in task.aliases.values()), *routed}
    earlier = {version for stack in task.aliases.values() for version in stack}
    ranked = [(0 if version in current else 1 if version in earlier else 2, version) for version in missing]
    return sorted(ranked, key=lambda pair: (pair[0], -pair[1]))


def place(state: PoolState, name: str, task: TaskState | None, before: TaskState | None) -> PoolState:
    """`state` with one task's aliases, routes, residents and failures as they should be for `task`.

    Versions stay resident if they are not retired, or still serve an alias.

    Args:
        name: of the task.
        task: its new state in the registry; None: it was deleted.
        before: the task as `state` has it; None: it is new.
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
    """`state` with one more version loaded. It may now serve aliases; versions that it relieves may leave."""
    task = state.tasks[resident.task]
    residents = {**state.residents, resident.key: resident}
    failed = _changed(state.failed, {resident.key: None})
    return place(replace(state, residents=residents, failed=failed), resident.task, task, task)


def _changed(mapping: Mapping, changes: Mapping) -> Mapping:
    """A copy with `changes` made, where None removes a key; the same object if nothing changes."""
    if all(mapping.get(key) == value for key, value in changes.items()):
        return mapping
    copy = {**mapping, **changes}
    for key in (key for key, value in changes.items() if value is None):
        del copy[key]
    return copy
