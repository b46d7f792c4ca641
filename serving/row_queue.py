"""The rows that wait for the device, oldest first, and the choice of a batch among them. No clocks, no tasks.

Rows of one request with the same tokens are a bundle (a row that stands alone is one of its own). It is never split, so
that many tasks on one input cost one backbone pass. A batch is the oldest bundle and those nearest to it in length
among the next ones, under a budget of rows and of tokens with their padding.
"""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.config import BatchConfig

WINDOW_BATCHES = 4
"""A batch is chosen among this many times `max_batch_rows` of the oldest bundles; newer ones cannot overtake them."""

Outcome = Any
"""An answer, or the exception in its place."""


class Row(Protocol):
    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def weight(self) -> int:
        """Rows of a batch that it counts as."""
        ...

    @property
    def alone(self) -> bool:
        """Not bundled with others of the same tokens, of which one request may have any number."""
        ...


@dataclass(slots=True, eq=False)
class Request:
    """Rows that were submitted together, and what has become of them."""

    rows: Sequence[Row]
    future: "asyncio.Future[list[Outcome]]"
    deadline: float | None
    arrived: float
    bundles: "list[Bundle]" = field(init=False)
    outcomes: list[Outcome] = field(init=False)
    left: int = field(init=False)
    """Rows without an outcome."""

    def __post_init__(self) -> None:
        self.outcomes, self.left = [None] * len(self.rows), len(self.rows)
        places: dict[object, list[int]] = {}
        for place, row in enumerate(self.rows):
            places.setdefault(place if row.alone else row.ids, []).append(place)
        self.bundles = [self._bundle(own) for own in places.values()]

    def _bundle(self, places: list[int]) -> "Bundle":
        return Bundle(self, self.rows[places[0]].ids, places, sum(self.rows[place].weight for place in places))

    def settle(self, place: int, outcome: Outcome) -> None:
        self.outcomes[place] = outcome
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.outcomes)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class Bundle:
    """Rows of one request that have the same tokens."""

    request: Request
    ids: tuple[int, ...]
    places: list[int]
    weight: int
    """Rows of a batch that it counts as."""

    def __len__(self) -> int:
        return len(self.places)


class RowQueue:
    """Bundles by arrival. Adding and removing cost the same however many wait."""

    def __init__(self) -> None:
        self._bundles: OrderedDict[Bundle, None] = OrderedDict()
        self.rows = 0
        self.tokens = 0
        """Without padding, each bundle's once."""

    def __len__(self) -> int:
        return len(self._bundles)

    def add(self, bundles: Iterable[Bundle]) -> None:
        for bundle in bundles:
            self._bundles[bundle] = None
            self._count(bundle, 1)

    def remove(self, bundles: Iterable[Bundle]) -> None:
        """Take them out; those that are not in it are skipped."""
        for bundle in bundles:
            if bundle in self._bundles:
                del self._bundles[bundle]
                self._count(bundle, -1)

    def oldest(self, count: int) -> list[Bundle]:
        return list(itertools.islice(self._bundles, count))

    def _count(self, bundle: Bundle, sign: int) -> None:
        self.rows += sign * len(bundle)
        self.tokens += sign * len(bundle.ids)


def choose(window: Sequence[Bundle], config: BatchConfig) -> list[Bundle]:
    """The first of `window` and those nearest in length that fit with it, shortest first.

    Identical tokens of different requests are one row of the backbone, so only rows count for them. The first is taken
    even where it alone is over the budget.
    """
    first = window[0]
    batch, inputs, rows, longest = [first], {first.ids}, first.weight, len(first.ids)
    for bundle in sorted(window[1:], key=lambda bundle: abs(len(bundle.ids) - len(first.ids))):
        wider = max(longest, len(bundle.ids))
        count = len(inputs) + (bundle.ids not in inputs)
        if rows + bundle.weight > config.max_batch_rows or count * wider > config.max_batch_tokens:
            continue
        batch.append(bundle)
        inputs.add(bundle.ids)
        rows, longest = rows + bundle.weight, wider
    return sorted(batch, key=lambda bundle: len(bundle.ids))
