"""Rows in shadow that wait for the device to have nothing else to do: bounded, and taken in small batches.

A caller who comes while such a batch is on the device waits for it. So a batch is as large as may be expected to take
`shadow_turn_s`, and rows wait a little for company: the fewer turns, the fewer callers come during one. No clocks.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from serving.config import BatchConfig, ShadowConfig
from serving.scheduler.estimates import Throughput
from serving.scheduler.requests import Bundle, ShadowRequest
from serving.scheduler.selection import choose

LEAST_TOKENS = 256
"""Of a batch: smaller ones cost about the same time."""

AGE_S = 5.0
"""Rows that wait so much longer than for company are dropped: what they hold is not kept for long."""

WINDOW = 4
"""A batch is chosen among this many times `max_batch_rows` of the oldest bundles."""


@dataclass(frozen=True, slots=True)
class ShadowTurn:
    """What of a turn is in shadow: all of it, or nothing."""

    rows: Mapping[ShadowRequest, int]
    """How many of each request."""
    tokens: int
    """Of those that begin."""


class ShadowQueue:
    """Oldest first. Over the bound, new rows are dropped."""

    def __init__(self, config: ShadowConfig, batch: BatchConfig) -> None:
        self._config, self._batch, self._pace = config, batch, Throughput()
        self._waiting: dict[Bundle, float] = {}
        """And since when."""
        self.rows = self._tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: ShadowRequest, now: float) -> None:
        """Queue its rows; those without room are dropped."""
        self.age(now)
        request.bundle(range(len(request.rows)))
        dropped = 0
        for bundle in request.bundles:
            if self.rows + bundle.weight > self._config.max_shadow_rows:
                dropped += len(bundle.places)
                continue
            self._waiting[bundle] = now
            self._count(bundle, 1)
        request.drop(dropped)

    def due_s(self, now: float, texts: int = 0) -> float | None:
        """How long until a batch should be taken; None while none may be.

        Args:
            texts: rows of texts that are being made in shadow.
        """
        oldest = next(self._able(texts), None)
        if oldest is None:
            return None
        if self._tokens >= self._budget() or self.rows >= self._batch.max_batch_rows:
            return 0.0
        return max(0.0, self._waiting[oldest] + self._config.shadow_wait_s - now)

    def age(self, now: float) -> None:
        """Drop those that have waited for too long."""
        limit = now - self._config.shadow_wait_s - AGE_S
        self._drop([*takewhile(lambda bundle: self._waiting[bundle] < limit, self._waiting)])

    def take(self, texts: int = 0) -> list[Bundle]:
        """The next batch, out of the queue; empty where none may be taken. `texts` as of `due_s`."""
        window = list(islice(self._able(texts), WINDOW * self._batch.max_batch_rows))
        unwanted = {bundle for bundle in window if not _request(bundle).is_wanted}
        self._drop(unwanted)
        window = [bundle for bundle in window if bundle not in unwanted]
        if not window:
            return []
        first = _request(window[0])
        able = [bundle for bundle in window if _goes_with(bundle, first)]
        batch = self._few_texts(choose(able, replace(self._batch, max_batch_tokens=self._budget())), texts)
        for bundle in batch:
            self._out(bundle)
        return batch

    def ended(self, turn: ShadowTurn, seconds: float) -> None:
        """Share out the time of a turn, and learn from it."""
        if not turn.rows:
            return
        count = sum(turn.rows.values())
        for request, rows in turn.rows.items():
            request.spent(seconds * rows / count)
        self._pace.learn(turn.tokens, seconds)
        alone = len({request.version for request in turn.rows}) == 1
        for request in turn.rows:
            request.took(seconds, alone)

    def clear(self) -> None:
        """Drop all."""
        self._drop(list(self._waiting))

    def _able(self, texts: int) -> Iterator[Bundle]:
        """Those that may be taken while so many texts are being made."""
        full = texts >= self._config.max_running_shadows
        return (bundle for bundle in self._waiting if not (full and bundle.running))

    def _few_texts(self, batch: list[Bundle], texts: int) -> list[Bundle]:
        """Without the texts that are too many; one goes in any case."""
        kept: list[Bundle] = []
        for bundle in batch:
            if bundle.running and texts and texts + bundle.running > self._config.max_running_shadows:
                continue
            texts += bundle.running
            kept.append(bundle)
        return kept

    def _budget(self) -> int:
        """Tokens of a batch, with padding."""
        expected = self._pace.seconds(1)
        fitting = int(self._config.shadow_turn_s / expected) if expected else LEAST_TOKENS
        return min(max(fitting, LEAST_TOKENS), self._batch.max_batch_tokens)

    def _drop(self, bundles: Iterable[Bundle]) -> None:
        for bundle in bundles:
            self._out(bundle)
            _request(bundle).drop(len(bundle.places))

    def _out(self, bundle: Bundle) -> None:
        del self._waiting[bundle]
        self._count(bundle, -1)

    def _count(self, bundle: Bundle, sign: int) -> None:
        self.rows += sign * bundle.weight
        self._tokens += sign * bundle.tokens


def _goes_with(bundle: Bundle, first: ShadowRequest) -> bool:
    """In one turn with `first`, which is in it."""
    request = _request(bundle)
    return request.version == first.version if first.apart else not request.apart


def _request(bundle: Bundle) -> ShadowRequest:
    assert isinstance(bundle.request, ShadowRequest)
    return bundle.request
