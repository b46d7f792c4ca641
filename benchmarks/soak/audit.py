"""Finds wrong answers. Pure functions of the recorded answers, the registry's changes and the generations served.

An answer is right if all of these hold:

- It equals what the version that it names answers, within a tolerance.
- The registry allowed this version to answer at some generation that is not older than the one that the answer names,
  and whose commit had begun before the answer came.
- The server was not known to serve a newer generation when the request started, by its watch stream or by an earlier
  answer. The commit of the named generation had begun before the answer came.
- The same route key led to the same version as before, as long as the alias and its route were not changed.

A request for one version gets an answer of that version, or UNKNOWN_VERSION once its retirement has begun.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from benchmarks.soak.churn import Change
from benchmarks.soak.load import Record
from benchmarks.soak.vitals import Sighting

GONE = "UNKNOWN_VERSION"
"""Reason of the error for a retired version."""

Distance = Callable[[Record], float]
"""How far an answer is from what its version answers, in tolerances: above 1 is another answer."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong answer: `error`, `mismatch`, `generation`, `version` or `key`."""

    kind: str
    record: Record
    why: str

    def __str__(self) -> str:
        return f"{self.record.task}:{self.record.version}: {self.why}"


def audit(
    records: Sequence[Record], changes: Sequence[Change], sightings: Sequence[Sighting], distance: Distance
) -> Iterator[Fault]:
    """Yield the first fault of every wrong answer."""
    history, known = History(changes), Known(records, sightings)
    keys: dict[tuple[str, str, str, int], int] = {}
    for record in records:
        least = known.before(record.started)
        if record.reason:
            if not (record.reason == GONE and history.is_gone(record, least)):
                yield Fault("error", record, record.reason)
        elif record.generation < least:
            yield Fault("generation", record, f"of generation {record.generation}, when {least} was known to be served")
        elif record.generation > (newest := history.newest(record.ended)):
            yield Fault(
                "generation", record, f"of generation {record.generation}, when {newest} was the registry's newest"
            )
        elif record.version not in (right := history.allowed(record)):
            yield Fault(
                "version", record, f"of generation {record.generation}, which only {sorted(right)} may answer for"
            )
        elif not (off := distance(record)) <= 1:
            yield Fault("mismatch", record, f"{off:.3g} tolerances from what that version answers")
        elif record.key and (since := history.standing(record)) is not None:
            led = keys.setdefault((record.task, record.alias, record.key, since), record.version)
            if led != record.version:
                yield Fault("key", record, f"its key led to version {led} since generation {since}")


class History:
    """The versions that each task's changes allowed, by generation."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._all = changes
        self._changes: dict[str, list[Change]] = defaultdict(list)
        for change in changes:
            self._changes[change.task].append(change)

    def newest(self, at: float) -> int:
        """Return the newest generation whose commit had begun at this time."""
        begun = bisect_right(self._all, at, key=lambda change: change.began)
        return self._all[begun - 1].generation if begun else 0

    def allowed(self, record: Record) -> frozenset[int]:
        """Versions that may answer, at the generation that the answer names or a later one."""
        during = self._during(record, record.generation)
        if record.pinned:
            return frozenset().union(*(change.live & {record.pinned} for change in during))
        return frozenset().union(*(change.allowed.get(record.alias, frozenset()) for change in during))

    def is_gone(self, record: Record, least: int) -> bool:
        """Whether the requested version may have been retired at generation `least` or later."""
        return record.pinned > 0 and any(record.pinned not in change.live for change in self._during(record, least))

    def standing(self, record: Record) -> int | None:
        """Return the generation that last moved the alias or set its route; None if there are several candidates."""
        moves = [change for change in self._changes[record.task] if change.moved == record.alias]
        in_force = _during(moves, record, record.generation)
        return in_force[0].generation if len(in_force) == 1 and not record.pinned else None

    def _during(self, record: Record, generation: int) -> Sequence[Change]:
        return _during(self._changes[record.task], record, generation)


def _during(changes: Sequence[Change], record: Record, generation: int) -> Sequence[Change]:
    """Return the change in force at that generation, and all later ones whose commit had begun when the answer came."""
    first = bisect_right(changes, generation, key=lambda change: change.generation) - 1
    last = bisect_right(changes, record.ended, key=lambda change: change.began)
    return changes[max(first, 0) : last]


class Known:
    """The newest generation that was known to be served, by time."""

    def __init__(self, records: Iterable[Record], sightings: Iterable[Sighting]) -> None:
        answers = ((record.ended, record.generation) for record in records if not record.reason)
        seen = sorted([*answers, *((sighting.at, sighting.served) for sighting in sightings)])
        self._at = [at for at, _ in seen]
        self._newest = list(accumulate((generation for _, generation in seen), max))

    def before(self, at: float) -> int:
        """Return the newest generation known to be served before this time; 0 if none."""
        index = bisect_left(self._at, at)
        return self._newest[index - 1] if index else 0
