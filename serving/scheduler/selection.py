"""Selects the rows of the next batch: within a token budget, by priority, fairness, length and deadline."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serving.config import BatchConfig
from serving.scheduler.estimates import SlotHoldTime, Throughput
from serving.scheduler.fair_queue import SCORES, TEXTS, FairQueue, Place, RowQueue
from serving.scheduler.requests import Bundle

WINDOW_BATCHES, WINDOW_MOST = 8, 1024
"""A batch is chosen among this many times `max_batch_rows` of the next bundles, and no more than so many; those behind
cannot overtake them."""


def window_size(config: BatchConfig) -> int:
    return min(WINDOW_BATCHES * config.max_batch_rows, max(WINDOW_MOST, config.max_batch_rows))


def choose(window: Sequence[Bundle], config: BatchConfig, core: Sequence[Bundle] = ()) -> list[Bundle]:
    """`core`, or the first of `window`, and the neighbours in length that make the best batch with it, shortest first.

    Equal inputs of different requests are one row of the backbone, so only rows count for them. The core is taken even
    where it alone is over the budget.
    """
    return _fill(window, config, core) if core else _stretch(window, config)


def _stretch(window: Sequence[Bundle], config: BatchConfig) -> list[Bundle]:
    """The best run around the first, of all that wait sorted by length."""
    lengths = np.array([bundle.tokens for bundle in window])
    inputs = np.array([bundle.input for bundle in window])
    weights = np.array([bundle.weight for bundle in window])
    order = _by_length(lengths, inputs)
    runs = _Runs(lengths[order], inputs[order], weights[order], config)
    start, end = runs.best(int(np.flatnonzero(order == 0)[0]))
    return [window[place] for place in order[start:end]]


def _by_length(lengths: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Places by length, equal inputs together, and of one length the older ones nearer to the first of all."""
    places = np.arange(len(lengths))
    _, oldest, which = np.unique(inputs, return_index=True, return_inverse=True)
    signs = np.where(lengths >= lengths[0], 1, -1)
    return np.lexsort((signs * places, signs * oldest[which], lengths))


class _Runs:
    """All runs of bundles that are sorted by length, and what each is worth."""

    def __init__(self, lengths: np.ndarray, inputs: np.ndarray, weights: np.ndarray, config: BatchConfig) -> None:
        self._lengths, self._config = lengths, config
        self._repeats = np.concatenate([[False], inputs[1:] == inputs[:-1], [False]])
        fresh = ~self._repeats[:-1]
        self._weights, self._inputs, self._tokens = _sums(weights), _sums(fresh), _sums(fresh * lengths)

    def best(self, first: int) -> tuple[int, int]:
        """(start, end) of the run with `first` in it that is worth most within the budgets.

        A run gains by all of its longest length, and down to where a length is not worth its padding. So it is enough
        to look at runs that begin and end with a length, and at those that the budgets cut.
        """
        new = np.flatnonzero(np.diff(self._lengths)) + 1  # where a longer length begins
        starts = np.concatenate([[0], new[new <= first], [first]])
        lasts = np.concatenate([[0], new[new > first]]) if len(new) else np.array([0])
        lasts[0] = first
        ends = np.append(new[new > first], len(self._lengths))
        limits = self._config.max_batch_tokens // np.maximum(self._lengths[lasts], 1)

        top_starts, tops = np.meshgrid(starts, np.arange(len(ends)), indexing="ij")
        top_ends = np.minimum(ends[tops], self._reach(top_starts, limits[tops]))
        cut_starts = np.maximum(
            np.searchsorted(self._weights, self._weights[ends] - self._config.max_batch_rows),
            np.searchsorted(self._inputs, self._inputs[ends] - limits),
        )
        all_starts = np.concatenate([top_starts.ravel(), cut_starts])
        all_ends = np.concatenate([top_ends.ravel(), ends])
        allowed = (all_starts <= first) & (all_ends > first)
        all_starts, all_ends = all_starts[allowed], all_ends[allowed]
        worth = self._worth(all_starts, all_ends)
        if not len(worth) or worth.max() <= 0:
            return first, first + 1
        place = int(worth.argmax())
        return int(all_starts[place]), int(all_ends[place])

    def _reach(self, starts: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """The furthest ends of runs that the budgets of rows and of inputs allow."""
        rows = np.searchsorted(self._weights, self._weights[starts] + self._config.max_batch_rows, side="right") - 1
        inputs = np.searchsorted(self._inputs, self._inputs[starts] + limits, side="right") - 1
        return np.minimum(rows, inputs)

    def _worth(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Real tokens in all that each run costs; 0 where it is over a budget."""
        cut = self._repeats[starts]  # its first one's equals lie outside: it counts after all
        inputs = self._inputs[ends] - self._inputs[starts] + cut
        tokens = self._tokens[ends] - self._tokens[starts] + cut * self._lengths[starts]
        padded = inputs * self._lengths[ends - 1]
        fits = self._weights[ends] - self._weights[starts] <= self._config.max_batch_rows
        fits &= padded <= self._config.max_batch_tokens
        return np.where(fits, tokens / (self._config.batch_cost_tokens + _cost(tokens, padded, self._config)), 0.0)


def _cost(tokens: Any, padded: Any, config: BatchConfig) -> Any:
    """What so many real tokens cost that are so many with padding: in real tokens."""
    return tokens + config.padding_cost * (padded - tokens)


def _sums(values: np.ndarray) -> np.ndarray:
    """Of the first 0, 1, 2 ... values."""
    return np.concatenate([[0], np.cumsum(values)])


def _fill(window: Sequence[Bundle], config: BatchConfig, core: Sequence[Bundle]) -> list[Bundle]:
    """`core`, and what fits in beside it without making it longer, for as long as it is worth its padding."""
    batch, inputs = list(core), {bundle.input: bundle.tokens for bundle in core}
    longest, rows, tokens = max(inputs.values()), sum(bundle.weight for bundle in core), sum(inputs.values())
    shorter = sorted((bundle for bundle in window if bundle.tokens <= longest), key=lambda bundle: -bundle.tokens)
    for bundle in shorter:
        count = len(inputs) + (bundle.input not in inputs)
        before = config.batch_cost_tokens + _cost(tokens, len(inputs) * longest, config)
        if bundle.tokens * before < tokens * _cost(bundle.tokens, longest, config):
            break
        if rows + bundle.weight <= config.max_batch_rows and count * longest <= config.max_batch_tokens:
            batch.append(bundle)
            rows, tokens = rows + bundle.weight, tokens + bundle.tokens * (count - len(inputs))
            inputs[bundle.input] = bundle.tokens
    return sorted(batch, key=lambda bundle: bundle.tokens)


DROPS = 3
"""How often a batch is chosen again because of rows that would expire during it."""


class BatchSelector:
    """What is next, each time the device is free.

    Args:
        drop: takes bundles out of the queue that would be too late; told when they would have been ready.
    """

    def __init__(
        self,
        queue: RowQueue,
        pace: Throughput,
        places: SlotHoldTime,
        config: BatchConfig,
        drop: Callable[[Sequence[Bundle], float], None],
    ) -> None:
        self._queue, self._pace, self._places, self._config, self._drop = queue, pace, places, config, drop
        beside = min(config.max_tokens_beside_texts or config.max_batch_tokens, config.max_batch_tokens)
        self._beside_texts = replace(config, max_batch_tokens=beside)

    def take(self, running: int, now: float) -> list[Bundle]:
        """The next batch, still in the queue; empty where nothing may be taken.

        Args:
            running: rows of the texts that are being made.
            now: in the seconds of the deadlines.
        """
        batch = self._choose(running, now)
        for _ in range(DROPS):
            wait = self._pace.seconds(sum(bundle.tokens for bundle in batch))
            late = self._late(batch, now, now + wait)
            if not late:
                break
            self._drop(late, now + wait)
            batch = self._choose(running, now)
        return batch

    def _choose(self, running: int, now: float) -> list[Bundle]:
        """A batch of the highest priority that waits, and where that has no more, of the next ones."""
        batch: list[Bundle] = []
        room = self._config.max_running_rows - running
        budget = self._beside_texts if running else self._config
        for order in self._queue.orders.values():
            alone = not running and not any(bundle.running for bundle in batch)
            window = self._window(order, room, now, alone)
            if window:
                chosen = choose(window, budget, batch)
                batch = self._with_heavy(chosen, window) if batch else chosen
            texts = [bundle for bundle in window if bundle.running]
            if len(window) - len(texts) < order.counts[SCORES] or not set(window) <= set(batch):
                break
            blocked = len(texts) < order.counts[TEXTS]  # these come first when there is room again
            room = 0 if blocked else room - sum(bundle.running for bundle in texts)
        return batch

    def _window(self, order: FairQueue, room: int, now: float, alone: bool) -> list[Bundle]:
        """The next bundles that may join the batch. What is over, or would be too late, leaves the queue instead."""
        count = window_size(self._config)
        while True:
            texts = _fitting(order.window(TEXTS, min(count, max(room, 1))), room, alone)
            if late := self._unfinished(order, [bundle for _, _, bundle in texts], now):
                self._drop(late, now + self._places.hold_s)
                continue
            window = [bundle for _, _, bundle in sorted([*order.window(SCORES, count), *texts])[:count]]
            soon = now + self._pace.turn_seconds(self._queue.tokens)
            late = self._late(window, now, soon)
            if not late:
                return window
            self._drop(late, soon)

    def _with_heavy(self, batch: list[Bundle], window: Sequence[Bundle]) -> list[Bundle]:
        """Beside the rows of higher priorities also a text too heavy to ever fit, if they leave it any rows and its
        tokens: nothing but its own start can end its wait, and other texts wait behind it."""
        heavy = next((bundle for bundle in window if bundle.running > self._config.max_running_rows), None)
        if heavy is None or heavy in batch or any(bundle.running for bundle in batch):
            return batch
        inputs = {bundle.input: bundle.tokens for bundle in [*batch, heavy]}
        within = len(inputs) * max(inputs.values()) <= self._config.max_batch_tokens
        if not within or sum(bundle.weight for bundle in batch) >= self._config.max_batch_rows:
            return batch
        return sorted([*batch, heavy], key=lambda bundle: bundle.tokens)

    def _unfinished(self, order: FairQueue, texts: Sequence[Bundle], now: float) -> list[Bundle]:
        """Those of the next texts that would not end in time, where others wait that could have their places."""
        others = order.counts[TEXTS] - len(texts)
        return [bundle for bundle in texts if _is_over(bundle, now + self._places.hold_s)][:others]

    def _late(self, bundles: Sequence[Bundle], now: float, soon: float) -> list[Bundle]:
        """Those that nobody waits for, or whose deadline is before `soon` while others could be answered instead."""
        late = [bundle for bundle in bundles if _is_over(bundle, soon)]
        able = self._queue.scores + sum(bool(bundle.running) for bundle in bundles)  # other texts wait for room
        return late if len(late) < able else [bundle for bundle in late if _is_over(bundle, now)]


def _is_over(bundle: Bundle, at: float) -> bool:
    """Nobody waits for it any more, or its deadline has passed by then."""
    request = bundle.request
    return request.is_over or (request.deadline is not None and request.deadline <= at)


def _fitting(texts: Sequence[Place], room: int, alone: bool) -> list[Place]:
    """The first texts that fit into the room together; the very first also where it is too heavy to ever fit."""
    found: list[Place] = []
    for place in texts:
        weight = place[-1].running
        if weight > room and not (alone and not found):
            break
        found.append(place)
        room -= weight
    return found
