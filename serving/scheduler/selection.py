"""Selects the rows of the next batch: within a token budget, by priority, fairness, length and deadline."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serving.config import BatchConfig
from serving.scheduler.estimates import Estimates
from serving.scheduler.fair_queue import SCORES, TEXTS, Entry, FairQueue, RowQueue
from serving.scheduler.requests import Bundle

WINDOW_BATCHES = 8
WINDOW_MOST = 1024
"""A batch is selected among the next `WINDOW_BATCHES` times `max_batch_rows` bundles, at most `WINDOW_MOST`. Bundles
behind them cannot overtake them."""


def window_size(config: BatchConfig) -> int:
    """Bundles that a batch is selected from."""
    return min(WINDOW_BATCHES * config.max_batch_rows, max(WINDOW_MOST, config.max_batch_rows))


def choose(window: Sequence[Bundle], config: BatchConfig, core: Sequence[Bundle] = ()) -> list[Bundle]:
    """Select a batch within the budgets of rows and tokens, shortest first.

    Equal inputs of different requests are one row of the backbone, so for them only rows count.

    Args:
        window: bundles in their order; without a core, the first of them is in the batch.
        core: bundles that are in the batch in any case, even over the budget. None that joins them is longer.
    """
    return _fill(window, config, core) if core else _best_run(window, config)


def _best_run(window: Sequence[Bundle], config: BatchConfig) -> list[Bundle]:
    """The best run that holds the first bundle, of all bundles sorted by length.

    It has twice the rows of `_fill`'s batch. On a CPU that gains no time (docs/LOG.md, `bench_selection`).
    """
    lengths = np.array([bundle.length for bundle in window])
    inputs = np.array([bundle.input for bundle in window])
    weights = np.array([bundle.weight for bundle in window])
    order = _by_length(lengths, inputs)
    runs = _Runs(lengths[order], inputs[order], weights[order], config)
    start, end = runs.best(int(np.flatnonzero(order == 0)[0]))
    return [window[index] for index in order[start:end]]


def _by_length(lengths: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Indices by length, equal inputs together, and of one length the older ones nearer to the first bundle."""
    indices = np.arange(len(lengths))
    _, oldest, which = np.unique(inputs, return_index=True, return_inverse=True)
    signs = np.where(lengths >= lengths[0], 1, -1)
    return np.lexsort((signs * indices, signs * oldest[which], lengths))


class _Runs:
    """All runs of bundles that are sorted by length, and what each is worth: real tokens per token of cost."""

    def __init__(self, lengths: np.ndarray, inputs: np.ndarray, weights: np.ndarray, config: BatchConfig) -> None:
        self._lengths = lengths
        self._config = config
        self._repeats = np.concatenate([[False], inputs[1:] == inputs[:-1], [False]])
        fresh = ~self._repeats[:-1]
        self._weights = _sums(weights)
        self._inputs = _sums(fresh)
        self._tokens = _sums(fresh * lengths)

    def best(self, first: int) -> tuple[int, int]:
        """(start, end) of the run with `first` in it that is worth most within the budgets.

        A run is worth more with all bundles of its longest length, and with shorter ones until a length is not worth
        its padding. So only runs that begin and end where the length changes can be best, and those that a budget
        cuts.
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
        all_starts = all_starts[allowed]
        all_ends = all_ends[allowed]
        worth = self._worth(all_starts, all_ends)
        if not len(worth) or worth.max() <= 0:
            return first, first + 1
        best = int(worth.argmax())
        return int(all_starts[best]), int(all_ends[best])

    def _reach(self, starts: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """The furthest ends of runs that the budgets of rows and of inputs allow."""
        rows = np.searchsorted(self._weights, self._weights[starts] + self._config.max_batch_rows, side="right") - 1
        inputs = np.searchsorted(self._inputs, self._inputs[starts] + limits, side="right") - 1
        return np.minimum(rows, inputs)

    def _worth(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Real tokens of each run per token of its cost; 0 where it is over a budget."""
        cut = self._repeats[starts]  # inputs equal to its first one lie outside the run, so it counts
        inputs = self._inputs[ends] - self._inputs[starts] + cut
        tokens = self._tokens[ends] - self._tokens[starts] + cut * self._lengths[starts]
        padded = inputs * self._lengths[ends - 1]
        fits = self._weights[ends] - self._weights[starts] <= self._config.max_batch_rows
        fits &= padded <= self._config.max_batch_tokens
        return np.where(fits, tokens / (self._config.batch_cost_tokens + _cost(tokens, padded, self._config)), 0.0)


def _cost(tokens: Any, padded: Any, config: BatchConfig) -> Any:
    """Cost, in real tokens, of so many real tokens that are so many with padding."""
    return tokens + config.padding_cost * (padded - tokens)


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, 2 ... values."""
    return np.concatenate([[0], np.cumsum(values)])


def _fill(window: Sequence[Bundle], config: BatchConfig, core: Sequence[Bundle]) -> list[Bundle]:
    """`core` and what fits without making it longer, longest first, while a bundle is worth its padding."""
    batch = list(core)
    inputs = {bundle.input: bundle.length for bundle in core}
    longest = max(inputs.values())
    rows = sum(bundle.weight for bundle in core)
    tokens = sum(inputs.values())
    shorter = sorted((bundle for bundle in window if bundle.length <= longest), key=lambda bundle: -bundle.length)
    for bundle in shorter:
        count = len(inputs) + (bundle.input not in inputs)
        before = config.batch_cost_tokens + _cost(tokens, len(inputs) * longest, config)
        if bundle.length * before < tokens * _cost(bundle.length, longest, config):
            break
        if rows + bundle.weight <= config.max_batch_rows and count * longest <= config.max_batch_tokens:
            batch.append(bundle)
            rows += bundle.weight
            tokens += bundle.length * (count - len(inputs))
            inputs[bundle.input] = bundle.length
    return sorted(batch, key=lambda bundle: bundle.length)


RESELECTIONS = 3
"""How often a batch is selected again because some of its rows would expire during it."""


class BatchSelector:
    """Selects the next batch, each time the device is free.

    Args:
        drop: removes bundles from the queue that would be answered too late, at the time of its second argument.
    """

    def __init__(
        self,
        queue: RowQueue,
        estimates: Estimates,
        config: BatchConfig,
        drop: Callable[[Sequence[Bundle], float], None],
    ) -> None:
        self._queue = queue
        self._throughput = estimates.throughput
        self._hold_time = estimates.hold_time
        self._config = config
        self._drop = drop
        most = min(config.max_tokens_beside_texts or config.max_batch_tokens, config.max_batch_tokens)
        self._config_with_texts = replace(config, max_batch_tokens=most)

    def select(self, running: int, now: float) -> list[Bundle]:
        """The next batch, still in the queue; empty where nothing may begin.

        Args:
            running: rows of the texts that are being generated.
            now: in the seconds of the deadlines.
        """
        batch = self._select(running, now)
        for _ in range(RESELECTIONS):
            ready = now + self._throughput.seconds(sum(bundle.tokens for bundle in batch))
            late = self._late(batch, now, ready)
            if not late:
                break
            self._drop(late, ready)
            batch = self._select(running, now)
        return batch

    def _select(self, running: int, now: float) -> list[Bundle]:
        """A batch of the highest priority that waits, filled up with lower ones where that has no more."""
        batch: list[Bundle] = []
        slots = self._config.max_running_rows - running
        config = self._config_with_texts if running else self._config
        for order in self._queue.orders.values():
            alone = not running and not any(bundle.running for bundle in batch)
            window = self._window(order, slots, now, alone)
            if window:
                chosen = choose(window, config, batch)
                batch = self._with_heavy_text(chosen, window) if batch else chosen
            texts = [bundle for bundle in window if bundle.running]
            if len(window) - len(texts) < order.counts[SCORES] or not set(window) <= set(batch):
                break
            blocked = len(texts) < order.counts[TEXTS]  # these get the next free slots, before lower priorities
            slots = 0 if blocked else slots - sum(bundle.running for bundle in texts)
        return batch

    def _window(self, order: FairQueue, slots: int, now: float, alone: bool) -> list[Bundle]:
        """The next bundles that may join the batch. Those that are over, or would be too late, leave the queue instead.

        Args:
            slots: free ones, for rows of texts.
            alone: no text runs or is in the batch.
        """
        count = window_size(self._config)
        while True:
            texts = _fitting(order.window(TEXTS, min(count, max(slots, 1))), slots, alone)
            if late := self._too_late_to_end(order, [bundle for _, _, bundle in texts], now):
                self._drop(late, now + self._hold_time.hold_s)
                continue
            window = [bundle for _, _, bundle in sorted([*order.window(SCORES, count), *texts])[:count]]
            ready = now + self._throughput.step_seconds(self._queue.tokens)
            late = self._late(window, now, ready)
            if not late:
                return window
            self._drop(late, ready)

    def _with_heavy_text(self, batch: list[Bundle], window: Sequence[Bundle]) -> list[Bundle]:
        """The batch, and a text with more beams than there are slots, if rows of higher priorities leave it the tokens.

        Such a text can never wait for enough free slots, and other texts wait behind it.
        """
        heavy = next((bundle for bundle in window if bundle.running > self._config.max_running_rows), None)
        if heavy is None or heavy in batch or any(bundle.running for bundle in batch):
            return batch
        inputs = {bundle.input: bundle.length for bundle in [*batch, heavy]}
        fits = len(inputs) * max(inputs.values()) <= self._config.max_batch_tokens
        if not fits or sum(bundle.weight for bundle in batch) >= self._config.max_batch_rows:
            return batch
        return sorted([*batch, heavy], key=lambda bundle: bundle.length)

    def _too_late_to_end(self, order: FairQueue, texts: Sequence[Bundle], now: float) -> list[Bundle]:
        """Those of the next texts that would end after their deadline, as far as others wait for their slots."""
        others = order.counts[TEXTS] - len(texts)
        return [bundle for bundle in texts if _is_over(bundle, now + self._hold_time.hold_s)][:others]

    def _late(self, bundles: Sequence[Bundle], now: float, ready: float) -> list[Bundle]:
        """Those that are over by `ready`. Where no others could be answered instead, only those that are over now."""
        late = [bundle for bundle in bundles if _is_over(bundle, ready)]
        able = self._queue.scores + sum(bool(bundle.running) for bundle in bundles)  # other texts wait for slots
        return late if len(late) < able else [bundle for bundle in late if _is_over(bundle, now)]


def _is_over(bundle: Bundle, at: float) -> bool:
    """Whether no caller waits for it any more, or its deadline has passed by then."""
    request = bundle.request
    return request.is_over or (request.deadline is not None and request.deadline <= at)


def _fitting(texts: Sequence[Entry], slots: int, alone: bool) -> list[Entry]:
    """The first texts that fit into the slots together. The very first goes alone where it can never fit."""
    fitting: list[Entry] = []
    for entry in texts:
        weight = entry[-1].running
        if weight > slots and not (alone and not fitting):
            break
        fitting.append(entry)
        slots -= weight
    return fitting
