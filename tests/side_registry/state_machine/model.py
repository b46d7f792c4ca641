"""A simple model of the registry's verbs: plain lists and dicts that are changed in place. Keeps no log.

A verb returns its result, or raises Refused and changes nothing.
"""

from dataclasses import dataclass, field

from side_registry import (
    PLAIN,
    InvalidRoute,
    NothingToRollBack,
    RegistryError,
    RollbackUnclear,
    Route,
    RouteChanged,
    State,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    VersionInUse,
)


class Refused(Exception):
    def __init__(self, kind: type[RegistryError]) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass
class ModelTask:
    payloads: list[int] = field(default_factory=list)  # of version 1, 2, ...
    retired: set[int] = field(default_factory=set)
    moves: dict[str, list[int]] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)  # aliases whose shares went last
    exists: bool = False

    def live(self) -> list[int]:
        return [version for version in range(1, len(self.payloads) + 1) if version not in self.retired]

    def need(self, version: int) -> None:
        if version not in self.live():
            raise Refused(UnknownVersion)

    def move(self, alias: str, version: int) -> None:
        moves = self.moves.setdefault(alias, [])
        if moves[-1:] != [version] or alias in self.routes:
            self.ended.discard(alias)
        if moves[-1:] != [version]:
            moves.append(version)
        self.routes.pop(alias, None)

    def put_route(self, alias: str, route: Route) -> None:
        before = self.routes.pop(alias, PLAIN)
        if route.shares:
            self.ended.discard(alias)
        elif before.shares:
            self.ended.add(alias)
        if route.shares or route.shadows:
            self.routes[alias] = route


class Model:
    def __init__(self, *names: str) -> None:
        self.tasks = {name: ModelTask() for name in names}

    def publish(self, name: str, payload: int, alias: str | None) -> tuple[int, bool, dict[str, int]]:
        task = self.tasks[name]
        same = [version for version in task.live() if task.payloads[version - 1] == payload]
        if not same:
            task.payloads.append(payload)
        version = same[0] if same else len(task.payloads)
        alias = alias if task.exists else alias or "production"
        task.exists = True
        if alias is None or task.moves.get(alias, [])[-1:] == [version]:
            return version, bool(same), {}
        task.move(alias, version)
        return version, bool(same), {alias: version}

    def set_alias(self, name: str, alias: str, version: int) -> None:
        task = self._task(name)
        task.need(version)
        task.move(alias, version)

    def set_route(self, name: str, alias: str, route: Route, version: int | None, seen: Route | None) -> None:
        task = self._task(name)
        if version is not None:
            task.need(version)
        current = version or self._at(task, alias)
        before = task.moves.get(alias, [])[-1:], task.routes.get(alias, PLAIN)
        if seen not in (None, before[1]) and before != ([current], route):
            raise Refused(RouteChanged)
        for named in sorted([*route.shares, *route.shadows]):
            task.need(named)
            if named == current:
                raise Refused(InvalidRoute)
        if task.moves.get(alias, [])[-1:] != [current]:
            task.move(alias, current)
        task.put_route(alias, route)

    def end_route(self, name: str, alias: str, seen: Route) -> bool:
        task = self.tasks[name]
        if not task.exists or task.routes.get(alias, PLAIN) != seen:
            return False
        if seen.shares:
            task.put_route(alias, Route(shadows=seen.shadows))
        return True

    def rollback(self, name: str, alias: str, to: int | None) -> tuple[int, int]:
        task = self._task(name)
        current = self._at(task, alias)
        shares = task.routes.get(alias, PLAIN).shares
        if to is not None:
            task.need(to)
        if shares and to in (None, current):
            task.put_route(alias, PLAIN)
            return max(shares, key=lambda version: (shares[version], version)), current
        moves = task.moves[alias][:-1]
        while moves and (moves[-1] in task.retired or moves[-1] == current or moves[-1] != (to or moves[-1])):
            moves.pop()
        if not moves:
            raise Refused(NothingToRollBack)
        if to is None and alias in task.ended:
            raise Refused(RollbackUnclear)
        task.moves[alias] = moves
        task.routes.pop(alias, None)
        task.ended.discard(alias)
        return current, moves[-1]

    def retire(self, name: str, version: int) -> None:
        task = self._task(name)
        if version > len(task.payloads):
            raise Refused(UnknownVersion)
        for alias, moves in task.moves.items():
            route = task.routes.get(alias, PLAIN)
            if version in (moves[-1], *route.shares, *route.shadows):
                raise Refused(VersionInUse)
        task.retired.add(version)

    def delete_task(self, name: str) -> None:
        task = self._task(name)
        task.retired = set(range(1, len(task.payloads) + 1))
        task.moves, task.routes, task.ended, task.exists = {}, {}, set(), False

    def check(self, state: State) -> None:
        """A folded log says the same."""
        assert set(state.live) == {name for name, task in self.tasks.items() if task.exists}
        for name, task in state.tasks.items():
            model = self.tasks[name]
            assert list(task.live) == model.live()
            assert task.last_version == len(model.payloads)
            assert {alias: list(stack) for alias, stack in task.aliases.items()} == model.moves
            assert task.routes == model.routes
            assert set(task.routed) == set(task.routes)
            assert set(task.ended) == model.ended
            assert not task.used & model.retired
            assert all(task.at(alias) not in route.versions for alias, route in task.routes.items())

    def _task(self, name: str) -> ModelTask:
        if not self.tasks[name].exists:
            raise Refused(UnknownTask)
        return self.tasks[name]

    def _at(self, task: ModelTask, alias: str) -> int:
        if alias not in task.moves:
            raise Refused(UnknownAlias)
        return task.moves[alias][-1]
