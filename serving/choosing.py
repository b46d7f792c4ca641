"""The choice of a batch among the next bundles in their order: little padding, and not too small. No clocks, no queue.

Padding is saved by batching what is near in length; what is lost on it is that a batch has a price of its own. So the
batch is the one in which real tokens are the largest share of all that it costs: its tokens, its padding at
`padding_cost` a token, and `batch_cost_tokens`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.config import BatchConfig
from serving.row_queue import Bundle

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
