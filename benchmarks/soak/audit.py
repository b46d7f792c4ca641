"""Who was told something wrong. Pure: what callers were told, what the registry's changes allowed, what was seen.

An answer is right where it is what the version that it names answers, where that version may have answered, and where
it is no older than what was known before it was asked:

- The registry let the version answer at a generation that is at least the one that the answer names, and that was
  committed, or about to be, before the answer came.
- The generation that it names is none that the server was past when the request started: by what it had told a watcher,
  or by an answer that came before.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from benchmarks.soak.churn import Change
from benchmarks.soak.load import Told
from benchmarks.soak.vitals import Sighting

Distance = Callable[[Told], float]
"""How far an answer is from what its version answers, in tolerances: above 1 is another answer."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong answer: `error`, `mismatch`, `version` or `generation`."""

    kind: str
    told: Told
    why: str

    def __str__(self) -> str:
        return f"{self.told.task}:{self.told.version}: {self.why}"


def audit(
    told: Sequence[Told], changes: Sequence[Change], sightings: Sequence[Sighting], distance: Distance
) -> Iterator[Fault]:
    """All that is wrong, an answer's first fault alone."""
    allowed, known = Allowed(changes), Known(told, sightings)
    for each in told:
        if each.reason:
            yield Fault("error", each, each.reason)
        elif (off := distance(each)) > 1:
            yield Fault("mismatch", each, f"{off:.3g} tolerances from what that version answers")
        elif each.generation < (least := known.before(each.started)):
            yield Fault("generation", each, f"of generation {each.generation}, when {least} was known to be served")
        elif each.version not in (right := allowed.during(each)):
            yield Fault("version", each, f"of generation {each.generation}, which only {sorted(right)} may answer for")


class Allowed:
    """Which versions may answer for a task, by generation."""

    def __init__(self, changes: Iterable[Change]) -> None:
        self._changes: dict[str, list[Change]] = defaultdict(list)
        for change in changes:
            self._changes[change.task].append(change)

    def during(self, told: Told) -> frozenset[int]:
        """At any generation from the one that the answer names to the last whose commit had begun when it came."""
        changes = self._changes[told.task]
        first = bisect_right(changes, told.generation, key=lambda change: change.generation) - 1
        last = bisect_right(changes, told.ended, key=lambda change: change.began)
        return frozenset().union(*(change.allowed for change in changes[max(first, 0) : last]))


class Known:
    """The newest generation that was known to be served at a time."""

    def __init__(self, told: Iterable[Told], sightings: Iterable[Sighting]) -> None:
        answers = ((each.ended, each.generation) for each in told if not each.reason)
        seen = sorted([*answers, *((each.at, each.served) for each in sightings)])
        self._at = [at for at, _ in seen]
        self._newest = list(accumulate((generation for _, generation in seen), max))

    def before(self, at: float) -> int:
        place = bisect_left(self._at, at)
        return self._newest[place - 1] if place else 0
