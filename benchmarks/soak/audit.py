"""Who was told something wrong. Pure: what callers were told, what the registry's changes allowed, what was seen.

An answer is right where it is what the version that it names answers, where that version may have answered, and where
it is no older than what was known before it was asked:

- The registry let the version answer at a generation that is at least the one that the answer names, and that was
  committed, or about to be, before the answer came.
- The generation that it names is none that the server was past when the request started: by what it had told a watcher,
  or by an answer that came before; and none that nobody had begun to commit when the answer came.
- The same key led to the same version as before, while nobody moved the alias or set its route.

Who asks for a version gets that one, or is told that there is no such version once somebody has begun to retire it.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from benchmarks.soak.churn import Change
from benchmarks.soak.load import Told
from benchmarks.soak.vitals import Sighting

GONE = "UNKNOWN_VERSION"
"""Why a version is not answered for that is retired."""

Distance = Callable[[Told], float]
"""How far an answer is from what its version answers, in tolerances: above 1 is another answer."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong answer: `error`, `mismatch`, `generation`, `version` or `key`."""

    kind: str
    told: Told
    why: str

    def __str__(self) -> str:
        return f"{self.told.task}:{self.told.version}: {self.why}"


def audit(
    told: Sequence[Told], changes: Sequence[Change], sightings: Sequence[Sighting], distance: Distance
) -> Iterator[Fault]:
    """All that is wrong, an answer's first fault alone."""
    history, known = History(changes), Known(told, sightings)
    keys: dict[tuple[str, str, str, int], int] = {}
    for each in told:
        least = known.before(each.started)
        if each.reason:
            if not (each.reason == GONE and history.is_gone(each, least)):
                yield Fault("error", each, each.reason)
        elif each.generation < least:
            yield Fault("generation", each, f"of generation {each.generation}, when {least} was known to be served")
        elif each.generation > (newest := history.newest(each.ended)):
            yield Fault("generation", each, f"of generation {each.generation}, when {newest} was the registry's newest")
        elif each.version not in (right := history.allowed(each)):
            yield Fault("version", each, f"of generation {each.generation}, which only {sorted(right)} may answer for")
        elif not (off := distance(each)) <= 1:
            yield Fault("mismatch", each, f"{off:.3g} tolerances from what that version answers")
        elif each.key and (since := history.standing(each)) is not None:
            led = keys.setdefault((each.task, each.alias, each.key, since), each.version)
            if led != each.version:
                yield Fault("key", each, f"its key led to version {led} since generation {since}")


class History:
    """What each task's changes allowed, by generation."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._all = changes
        self._changes: dict[str, list[Change]] = defaultdict(list)
        for change in changes:
            self._changes[change.task].append(change)

    def newest(self, at: float) -> int:
        """The newest generation whose commit had begun."""
        begun = bisect_right(self._all, at, key=lambda change: change.began)
        return self._all[begun - 1].generation if begun else 0

    def allowed(self, told: Told) -> frozenset[int]:
        """Who may answer, at any generation from the one that the answer names."""
        during = self._during(told, told.generation)
        if told.pinned:
            return frozenset().union(*(each.live & {told.pinned} for each in during))
        return frozenset().union(*(each.allowed.get(told.alias, frozenset()) for each in during))

    def is_gone(self, told: Told, least: int) -> bool:
        """The version that was asked for may have been retired, at any generation from `least`."""
        return told.pinned > 0 and any(told.pinned not in each.live for each in self._during(told, least))

    def standing(self, told: Told) -> int | None:
        """The generation that moved the alias last, or set its route; None where that may be one of two."""
        moves = [each for each in self._changes[told.task] if each.moved == told.alias]
        found = _during(moves, told, told.generation)
        return found[0].generation if len(found) == 1 and not told.pinned else None

    def _during(self, told: Told, generation: int) -> Sequence[Change]:
        return _during(self._changes[told.task], told, generation)


def _during(changes: Sequence[Change], told: Told, generation: int) -> Sequence[Change]:
    """The one that held at that generation, and all later ones whose commit had begun when the answer came."""
    first = bisect_right(changes, generation, key=lambda change: change.generation) - 1
    last = bisect_right(changes, told.ended, key=lambda change: change.began)
    return changes[max(first, 0) : last]


class Known:
    """The newest generation that was known to be served at a time."""

    def __init__(self, told: Iterable[Told], sightings: Iterable[Sighting]) -> None:
        answers = ((each.ended, each.generation) for each in told if not each.reason)
        seen = sorted([*answers, *((each.at, each.served) for each in sightings)])
        self._at = [at for at, _ in seen]
        self._newest = list(accumulate((generation for _, generation in seen), max))

    def before(self, at: float) -> int:
        """Return the newest version that was set before this time; 0 if none."""
        place = bisect_left(self._at, at)
        return self._newest[place - 1] if place else 0
