"""In which order rows of different side networks are computed: those of one, and equal numbers of rows, together.

A run is several side networks with as many rows each, whose slots are evenly spaced in one chunk. Then their weights
are one strided view, and a batched matrix product reads them where they lie: nothing is copied.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Side networks of a chunk, `step` slots apart, with `rows` rows each."""

    chunk: int
    first: int
    step: int
    count: int
    rows: int
    start: int
    """Its first row in the order of computation."""

    @property
    def stop(self) -> int:
        return self.start + self.count * self.rows

    @property
    def slots(self) -> slice:
        return slice(self.first, self.first + (self.count - 1) * self.step + 1, self.step)


def arrange(places: Sequence[tuple[int, int]]) -> tuple[list[int], list[Run]]:
    """The order in which rows are computed, and their runs, of each row's (chunk, slot)."""
    rows: dict[tuple[int, int], list[int]] = {}
    for row, place in enumerate(places):
        rows.setdefault(place, []).append(row)
    alike: dict[tuple[int, int], list[int]] = {}
    for (chunk, slot), members in rows.items():
        alike.setdefault((len(members), chunk), []).append(slot)
    order, runs = [], []
    for (count, chunk), slots in sorted(alike.items()):
        for first, step, length in progressions(sorted(slots)):
            runs.append(Run(chunk, first, step, length, count, len(order)))
            order.extend(row for n in range(length) for row in rows[chunk, first + n * step])
    return order, runs


def progressions(slots: Sequence[int]) -> Iterable[tuple[int, int, int]]:
    """Ascending numbers as evenly spaced stretches: first, step, length. Any two are one."""
    start = 0
    while start < len(slots):
        stop = start + 1
        step = slots[stop] - slots[start] if stop < len(slots) else 1
        while stop < len(slots) and slots[stop] - slots[stop - 1] == step:
            stop += 1
        yield slots[start], step, stop - start
        start = stop
