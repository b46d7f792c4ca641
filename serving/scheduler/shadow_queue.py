"""Shadow rows that wait for the device to have nothing else to do: bounded, and taken in small batches.

A caller who comes while such a batch is on the device waits for it. So a batch is as large as is predicted to take
`shadow_turn_s`, and rows wait a little for others: the fewer batches, the fewer callers come during one. No clocks.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from serving.config import BatchConfig, ShadowConfig
from serving.scheduler.estimates import Throughput
from serving.scheduler.requests import Bundle, ShadowRequest
from serving.scheduler.selection import choose

LEAST_TOKENS = 256
"""Budget of a batch, at least: smaller ones take about the same time."""

AGE_S = 5.0
"""Rows that have waited for so much longer than `shadow_wait_s` are dropped, so that their memory is freed."""

WINDOW = 4
"""A batch is selected among this many times `max_batch_rows` of the oldest bundles."""


@dataclass(frozen=True, slots=True)
class ShadowStep:
    """The shadow part of a step: all of the step, or nothing."""

    rows: Mapping[ShadowRequest, int]
    """How many rows of each request."""
    tokens: int
    """Of the rows that begin."""


class ShadowQueue:
    """Oldest first. Over the bound, new rows are dropped."""

    def __init__(self, config: ShadowConfig, batch: BatchConfig) -> None:
        self._config = config
        self._batch = batch
        self._throughput = Throughput()
        self._waiting: dict[Bundle, float] = {}
        """Bundles to the time since when they wait."""
        self.rows = 0
        """That wait, by weight."""
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: ShadowRequest, now: float) -> None:
        """Queue the request's rows, and drop those that there is no room for."""
        self.age(now)
        request.bundle(range(len(request.rows)))
        dropped = 0
        for bundle in request.bundles:
            if self.rows + bundle.weight > self._config.max_shadow_rows:
                dropped += len(bundle.indices)
                continue
            self._waiting[bundle] = now
            self._count(bundle, 1)
        request.drop(dropped)

    def due_s(self, now: float, texts: int = 0) -> float | None:
        """Seconds until a batch should be taken; None while none may be.

        Args:
            texts: shadow rows whose texts are being generated.
        """
        oldest = next(self._able(texts), None)
        if oldest is None:
            return None
        if self._tokens >= self._budget() or self.rows >= self._batch.max_batch_rows:
            return 0.0
        return max(0.0, self._waiting[oldest] + self._config.shadow_wait_s - now)

    def age(self, now: float) -> None:
        """Drop rows that have waited for too long."""
        limit = now - self._config.shadow_wait_s - AGE_S
        self._drop([*takewhile(lambda bundle: self._waiting[bundle] < limit, self._waiting)])

    def take(self, texts: int = 0) -> list[Bundle]:
        """Take the next batch out of the queue; empty where none may be taken. `texts` as of `due_s`."""
        window = list(islice(self._able(texts), WINDOW * self._batch.max_batch_rows))
        unwanted = {bundle for bundle in window if not _request(bundle).is_wanted}
        self._drop(unwanted)
        window = [bundle for bundle in window if bundle not in unwanted]
        if not window:
            return []
        batch = self._limit_texts(choose(window, replace(self._batch, max_batch_tokens=self._budget())), texts)
        for bundle in batch:
            self._remove(bundle)
        return batch

    def end_step(self, step: ShadowStep, seconds: float) -> None:
        """Divide the time of a step among its requests, and learn from it."""
        if not step.rows:
            return
        count = sum(step.rows.values())
        for request, rows in step.rows.items():
            request.add_device_time(seconds * rows / count)
        self._throughput.learn(step.tokens, seconds)
        for request in step.rows:
            request.check_step_time(seconds)

    def clear(self) -> None:
        """Drop all rows."""
        self._drop(list(self._waiting))

    def _able(self, texts: int) -> Iterator[Bundle]:
        """Bundles that may be taken while so many texts are being generated."""
        full = texts >= self._config.max_running_shadows
        return (bundle for bundle in self._waiting if not (full and bundle.running))

    def _limit_texts(self, batch: list[Bundle], texts: int) -> list[Bundle]:
        """The batch without texts over `max_running_shadows`; the first text goes in any case."""
        kept: list[Bundle] = []
        for bundle in batch:
            if bundle.running and texts and texts + bundle.running > self._config.max_running_shadows:
                continue
            texts += bundle.running
            kept.append(bundle)
        return kept

    def _budget(self) -> int:
        """Tokens of a batch, padding included."""
        token_s = self._throughput.seconds(1)
        fitting = int(self._config.shadow_turn_s / token_s) if token_s else LEAST_TOKENS
        return min(max(fitting, LEAST_TOKENS), self._batch.max_batch_tokens)

    def _drop(self, bundles: Iterable[Bundle]) -> None:
        for bundle in bundles:
            self._remove(bundle)
            _request(bundle).drop(len(bundle.indices))

    def _remove(self, bundle: Bundle) -> None:
        del self._waiting[bundle]
        self._count(bundle, -1)

    def _count(self, bundle: Bundle, sign: int) -> None:
        self.rows += sign * bundle.weight
        self._tokens += sign * bundle.tokens


def _request(bundle: Bundle) -> ShadowRequest:
    assert isinstance(bundle.request, ShadowRequest)
    return bundle.request
