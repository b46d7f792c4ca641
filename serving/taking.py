"""The next batch out of what waits: in order, within the budgets and the room for texts, and without what is too late.

No clocks, no device: both are told.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from serving.choosing import choose, window_size
from serving.config import BatchConfig
from serving.fair_order import SCORES, TEXTS, FairOrder, Place, RowQueue
from serving.pace import Pace
from serving.places import Places
from serving.row_queue import Bundle

DROPS = 3
"""How often a batch is chosen again because of rows that would expire during it."""


class Taking:
    """What is next, each time the device is free.

    Args:
        drop: takes bundles out of the queue that would be too late; told when they would have been ready.
    """

    def __init__(
        self,
        queue: RowQueue,
        pace: Pace,
        places: Places,
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

    def _window(self, order: FairOrder, room: int, now: float, alone: bool) -> list[Bundle]:
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

    def _unfinished(self, order: FairOrder, texts: Sequence[Bundle], now: float) -> list[Bundle]:
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
