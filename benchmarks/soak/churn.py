"""Makes random changes to a registry, and records which versions may answer after each.

It must be the registry's only writer. Old versions are retired, so the number of live versions stays small.
"""

import random
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.soak.load import CANARY
from benchmarks.soak.versions import make_spec
from side_registry import Registry
from side_registry.route import PLAIN, Route
from side_registry.specs.task import PRODUCTION
from side_registry.state import TaskState, rollback_target

KEPT = 4
"""Live versions of a task. If there are more, the oldest that no alias or route names is retired."""
WEIGHTS = {"publish": 4, "promote": 3, "roll back": 2, "share": 2, "canary": 1, "shadow": 1, "break": 0.5}
"""Weight of each change in the draw, if it is possible. "break" publishes a version that every server refuses to load,
with the alias production; the next change of that task rolls it back, and the one after that retires it."""

Make = Callable[[int, bool], Path]
"""Makes a new run folder for the task of that number; the flag asks for a broken one. Removed after its publish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One commit about one task. Times are time.monotonic() seconds before and after the call that made it."""

    verb: str
    task: str
    generation: int
    began: float
    ended: float
    allowed: Mapping[str, frozenset[int]]
    """Versions that may answer after the change, by alias."""
    live: frozenset[int]
    """Versions of the task that are not retired after the change."""

    @property
    def moved(self) -> str:
        """The alias that it moved, or whose route it set; "" if neither."""
        return {"retire": "", "canary": CANARY}.get(self.verb, PRODUCTION)


@dataclass
class Churn:
    """The writer: publishes, promotes, rolls back, retires and routes versions at random.

    Args:
        tasks: number of tasks.
        make: makes run folders. Called by `prepare` alone, so that no change waits for it.
    """

    registry: Registry
    tasks: int
    make: Make
    seed: int = 0
    changes: list[Change] = field(default_factory=list)
    broken: set[tuple[str, int]] = field(default_factory=set)
    _sound: dict[int, deque[Path]] = field(default_factory=dict)
    _unsound: dict[int, deque[Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    @property
    def counts(self) -> Counter[str]:
        """Number of changes, by verb."""
        return Counter(change.verb for change in self.changes)

    def start(self) -> None:
        """Publish KEPT versions of every task; the newest gets the alias production, the first canary."""
        self.prepare(KEPT)
        for number in range(self.tasks):
            for _ in range(KEPT):
                self._commit("start", partial(self._publish, number), number)
            name = make_spec(number).name
            self._commit("canary", partial(self.registry.set_alias, name, CANARY, 1), number)

    def prepare(self, count: int, broken: int = 1) -> None:
        """Make run folders until every task has `count` valid and `broken` broken ones to publish."""
        for number in range(self.tasks):
            sound, unsound = self._sound.setdefault(number, deque()), self._unsound.setdefault(number, deque())
            sound.extend(self.make(number, False) for _ in range(count - len(sound)))
            unsound.extend(self.make(number, True) for _ in range(broken - len(unsound)))

    def step(self) -> Change:
        """Make one change of a random task. A call that commits nothing does not count; another one is drawn."""
        while True:
            number, before = self._draw.randrange(self.tasks), len(self.changes)
            task = self._task(number)
            self._commit(*(self._repair(task) or self._draw_change(number, task)), number)
            if len(self.changes) > before:
                return self.changes[-1]

    def _repair(self, task: TaskState) -> "tuple[str, Callable[[], object]] | None":
        """Return the roll-back or retirement that earlier changes require; None if there is none."""
        name, current = task.name, task.at(PRODUCTION)
        if (name, current) in self.broken:
            return "roll back", partial(self.registry.rollback, name)
        idle = [version for version in task.live if version not in named(task)]
        gone = [version for version in idle if (name, version) in self.broken]
        if gone or (idle and len(task.live) > KEPT):
            return "retire", partial(self.registry.retire, name, (gone or idle)[0])
        return None

    def _draw_change(self, number: int, task: TaskState) -> tuple[str, Callable[[], object]]:
        possible = self._possible(number, task)
        [verb] = self._draw.choices(list(possible), [WEIGHTS[verb] for verb in possible])
        return verb, possible[verb]

    def _possible(self, number: int, task: TaskState) -> dict[str, Callable[[], object]]:
        name, current = task.name, task.at(PRODUCTION)
        changes: dict[str, Callable[[], object]] = {}
        if self._sound[number]:
            changes["publish"] = partial(self._publish, number)
        if self._unsound[number]:
            changes["break"] = partial(self._break, number)
        if others := [version for version in task.live if version != current]:
            other, third = self._draw.choice(others), self._draw.choice(others)
            share = {other: self._draw.choice((500, 2_500, 5_000))}
            shadows = (third,) if third != other else ()
            changes["promote"] = partial(self.registry.set_alias, name, PRODUCTION, other)
            changes["canary"] = partial(self.registry.set_alias, name, CANARY, third)
            changes["share"] = partial(self._route, name, Route(shares=share, shadows=shadows))
            changes["shadow"] = partial(self._route, name, Route(shadows=(other,)))
        if (before := rollback_target(task, PRODUCTION)) is not None:
            to = before if PRODUCTION in task.ended else None  # else it could mean the shares that were taken away
            changes["roll back"] = partial(self.registry.rollback, name, to=to)
        return changes

    def _publish(self, number: int) -> None:
        run = self._sound[number].popleft()
        self.registry.publish(run, alias=PRODUCTION)
        shutil.rmtree(run)

    def _break(self, number: int) -> None:
        run = self._unsound[number].popleft()
        published = self.registry.publish(run, alias=PRODUCTION)
        self.broken.add((published.task, published.version))
        shutil.rmtree(run)

    def _route(self, task: str, route: Route) -> None:
        self.registry.set_route(task, PRODUCTION, route)

    def _commit(self, verb: str, act: Callable[[], object], number: int) -> None:
        began = time.monotonic()
        act()
        ended, generation = time.monotonic(), self.registry.state(refresh=False).generation
        if self.changes and generation == self.changes[-1].generation:
            return
        task = self._task(number)
        broken = {version for name, version in self.broken if name == task.name}
        change = Change(
            verb=verb,
            task=task.name,
            generation=generation,
            began=began,
            ended=ended,
            allowed={alias: allowed(task, alias, broken) for alias in task.aliases},
            live=frozenset(task.live),
        )
        self.changes.append(change)

    def _task(self, number: int) -> TaskState:
        return self.registry.state(refresh=False).task(make_spec(number).name)


def named(task: TaskState) -> frozenset[int]:
    """Return the versions that an alias of the task or a route names."""
    return frozenset(task.serving.values()).union(*(route.versions for route in task.routes.values()))


def allowed(task: TaskState, alias: str, broken: Collection[int]) -> frozenset[int]:
    """Return the versions that may answer for an alias: those with a share, and the newest of its stack that loads."""
    stack = task.aliases[alias]
    current = next(
        version for version in reversed(stack) if version not in broken and not task.versions[version].retired
    )
    shares = task.routes.get(alias, PLAIN).shares
    return frozenset((current, *(version for version in shares if version not in broken)))
