"""The order in which waiting bundles are served: by priority, and within a priority fairly among tasks. No clocks.

Priorities are strict: while a bundle of a higher one waits, the lower ones get what it leaves over. Within one, tasks
take turns by the tokens they used (start-time fair queueing): each task has a tag that grows by the tokens that it is
charged for, the smallest tag is next, and a task that begins to wait starts at the tag that is being served. So a task
that queues a lot delays its own rows, not those of other tasks. A task is charged when it is served, for a text also
while it is generated, and never for rows that were cancelled or expired.

A bundle of several tasks waits in the line of the task with the largest tag, and each task is charged its share.
Bundles that generate texts have a line of their own per task: while all slots for texts are taken, other rows overtake
them.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from serving.scheduler.requests import Bundle

PRIORITIES = (1, 2, 3, 4)
"""1 is served first, as in the Open Inference Protocol."""

SCORES, TEXTS = 0, 1
"""Lines of a task: rows that are answered in one step, and rows that generate texts."""


class _Task:
    """One task's lines in one priority."""

    __slots__ = ("idle", "lines", "listed", "tag", "tokens")

    def __init__(self, tag: float) -> None:
        self.tag = tag
        """Service tag: tokens of service, on the queue's own scale."""
        self.tokens = [0, 0]
        """Tokens that wait, in each line."""
        self.lines: tuple[OrderedDict[int, Bundle], ...] = (OrderedDict(), OrderedDict())
        self.listed = [False, False]
        """Whether each line has its entry in the heap."""
        self.idle = False
        """Whether it is listed to be forgotten, once other tasks have been served as much as it was charged."""

    @property
    def waits(self) -> bool:
        """Whether it has a bundle in any line."""
        return bool(self.lines[SCORES] or self.lines[TEXTS])


Entry = tuple[float, int, Bundle]
"""(tag, number, bundle): the smallest is next. Of equal tags, the smaller number is older."""


class FairQueue:
    """The bundles of one priority. Adding and removing take the same time however many wait."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Task] = {}
        self._scoring: dict[str, _Task] = {}
        """Tasks with SCORES waiting."""
        self._idle: list[tuple[float, str]] = []
        """A heap of (tag, name) of tasks that have nothing waiting. A tag in a heap may be older than its task's."""
        self._heaps: tuple[list[tuple[float, int, _Task]], ...] = ([], [])
        """One heap per kind of line, with an entry per line that waits. Tags only grow, so an old one is too small."""
        self._now = 0.0
        """The tag that is being served."""
        self.counts = [0, 0]
        """Bundles that wait, in SCORES and in TEXTS."""
        self.tokens = [0, 0]
        """Tokens that wait, in SCORES and in TEXTS."""
        self._texts: dict[str, int] = {}
        """Rows of texts that wait, by the task in whose line they are."""

    def __len__(self) -> int:
        return self.counts[SCORES] + self.counts[TEXTS]

    def add(self, bundle: Bundle) -> None:
        """Put a bundle at the end of its task's line."""
        bundle.owner = self._owner(bundle)
        bundle.cost = bundle.shares[bundle.owner]
        task = self._waiting(bundle.owner)
        line = _line(bundle)
        task.lines[line][bundle.number] = bundle
        task.tokens[line] += bundle.tokens
        if line == SCORES:
            self._scoring[bundle.owner] = task
        self._list(task, line)
        self._count_texts(bundle, 1)
        self.counts[line] += 1
        self.tokens[line] += bundle.tokens

    def remove(self, bundle: Bundle) -> bool:
        """Take a bundle out unserved; False where it is not in the queue."""
        task, line = self._tasks.get(bundle.owner), _line(bundle)
        if task is None or task.lines[line].pop(bundle.number, None) is None:
            return False
        task.tokens[line] -= bundle.tokens
        if not task.lines[SCORES]:
            self._scoring.pop(bundle.owner, None)
        self._count_texts(bundle, -1)
        self.counts[line] -= 1
        self.tokens[line] -= bundle.tokens
        if not len(self):
            self._tasks = {}  # the queue is empty: reset all service tags
            self._heaps = ([], [])
            self._idle = []
            self._now = 0.0
        elif not task.waits:
            self._list_idle(bundle.owner, task)
            self._forget_idle()
        return True

    def serve(self, bundles: Iterable[Bundle]) -> None:
        """Take a batch's bundles out, and charge their tasks for them."""
        bundles = list(bundles)
        self._now = max(self._now, min(self._tasks[bundle.owner].tag for bundle in bundles))
        for bundle in bundles:
            for task, tokens in bundle.shares.items():
                self.charge(task, tokens)
            self.remove(bundle)
        self._forget_idle()

    def charge(self, name: str, tokens: float) -> None:
        """Add so much service to a task's tag. No-op on an empty queue: there is no other task to be fair to."""
        if not len(self):
            return
        task = self._tasks.setdefault(name, _Task(self._now))
        task.tag = (task.tag if task.waits else max(task.tag, self._now)) + tokens
        if not task.waits:
            self._list_idle(name, task)

    def window(self, line: int, count: int) -> list[Entry]:
        """The next bundles of one kind of line, at most `count`, in the order of service."""
        if not self.counts[line]:
            return []
        heap = self._heaps[line]
        begun: list[_Task] = []
        window: list[Entry] = []
        rest: list[tuple[float, int, Bundle, Iterator[Bundle]]] = []  # lines that were begun, each at its next bundle
        self._tidy(line)
        while len(window) < count and (heap or rest):
            if rest and not (heap and heap[0][:2] < rest[0][:2]):
                tag, number, bundle, following = rest[0]
                window.append((tag, number, bundle))
                if after := next(following, None):
                    heapq.heapreplace(rest, (tag + bundle.cost, after.number, after, following))
                else:
                    heapq.heappop(rest)
            else:
                tag, _, task = heapq.heappop(heap)
                begun.append(task)
                following = iter(task.lines[line].values())
                bundle = next(following)
                heapq.heappush(rest, (tag, bundle.number, bundle, following))
                self._tidy(line)
        for task in begun:
            task.listed[line] = False
            self._list(task, line)
        return window

    def ahead_of(self, name: str, tokens: int) -> float:
        """Tokens that are served before a bundle of this task that would join now, if no more came.

        Texts do not count: they may have to wait for slots, and are overtaken then.
        """
        task = self._tasks.get(name)
        waiting = task.tokens[SCORES] if task else 0
        start = task.tag if task and task.waits else max(task.tag if task else 0.0, self._now)
        end = start + waiting + tokens
        others = (other for other in self._scoring.values() if other is not task)
        return waiting + sum(min(other.tokens[SCORES], max(0.0, end - other.tag)) for other in others)

    def texts_ahead_of(self, name: str, rows: int) -> int:
        """Rows of texts that start before this many of a task that would join now, if no more came.

        Tasks take turns, so of each other task no more rows count than this task has itself.
        """
        waiting = self._texts.get(name, 0)
        return waiting + sum(min(other, waiting + rows) for task, other in self._texts.items() if task != name)

    def _count_texts(self, bundle: Bundle, sign: int) -> None:
        if rows := self._texts.get(bundle.owner, 0) + sign * bundle.running:
            self._texts[bundle.owner] = rows
        else:
            self._texts.pop(bundle.owner, None)

    @property
    def texts(self) -> int:
        """Rows of texts that wait."""
        return sum(self._texts.values())

    def _owner(self, bundle: Bundle) -> str:
        if len(bundle.shares) == 1:
            return bundle.owner
        return max(bundle.shares, key=lambda name: self._tasks[name].tag if name in self._tasks else self._now)

    def _waiting(self, name: str) -> _Task:
        """The task, with its tag moved up to the one being served if it begins to wait now."""
        task = self._tasks.setdefault(name, _Task(self._now))
        if not task.waits:
            task.tag = max(task.tag, self._now)
        return task

    def _list_idle(self, name: str, task: _Task) -> None:
        """Have a task that has nothing waiting forgotten when its tag has been served."""
        if not task.idle:
            task.idle = True
            heapq.heappush(self._idle, (task.tag, name))

    def _forget_idle(self) -> None:
        while self._idle and self._idle[0][0] <= self._now:
            _, name = heapq.heappop(self._idle)
            task = self._tasks[name]
            task.idle = False
            if task.waits:
                continue
            if task.tag > self._now:
                self._list_idle(name, task)
            else:
                del self._tasks[name]

    def _list(self, task: _Task, line: int) -> None:
        if task.lines[line] and not task.listed[line]:
            task.listed[line] = True
            heapq.heappush(self._heaps[line], (task.tag, next(iter(task.lines[line])), task))

    def _tidy(self, line: int) -> None:
        """Bring the heap's first entry up to date: a line that waits, with its task's tag of now."""
        heap = self._heaps[line]
        while heap:
            tag, _, task = heap[0]
            waiting = task.lines[line]
            if not waiting:
                heapq.heappop(heap)
                task.listed[line] = False
            elif task.tag > tag:
                heapq.heapreplace(heap, (task.tag, next(iter(waiting)), task))
            else:
                return


def _line(bundle: Bundle) -> int:
    return TEXTS if bundle.running else SCORES


class RowQueue:
    """All that waits for the device, a fair queue for each priority."""

    def __init__(self) -> None:
        self.orders = {priority: FairQueue() for priority in PRIORITIES}
        self.rows = 0
        """That wait, by weight: each beam is one."""
        self.tokens = 0
        """That wait, without padding, once for each bundle."""
        self._number = 0

    def __len__(self) -> int:
        return sum(map(len, self.orders.values()))

    @property
    def scores(self) -> int:
        """Bundles that make no text."""
        return sum(order.counts[SCORES] for order in self.orders.values())

    def add(self, bundles: Iterable[Bundle]) -> None:
        """Queue bundles, in their requests' priorities."""
        for bundle in bundles:
            self._number += 1
            bundle.number = self._number
            self.orders[bundle.request.priority].add(bundle)
            self.rows += bundle.weight
            self.tokens += bundle.tokens

    def remove(self, bundles: Iterable[Bundle]) -> list[Bundle]:
        """Take bundles out unserved; returns those that were in the queue."""
        removed = [bundle for bundle in bundles if self.orders[bundle.request.priority].remove(bundle)]
        self._count_out(removed)
        return removed

    def serve(self, bundles: Sequence[Bundle]) -> None:
        """Take a batch out, and charge its tasks for it."""
        for priority in {bundle.request.priority for bundle in bundles}:
            self.orders[priority].serve(bundle for bundle in bundles if bundle.request.priority == priority)
        self._count_out(bundles)

    def _count_out(self, bundles: Sequence[Bundle]) -> None:
        self.rows -= sum(bundle.weight for bundle in bundles)
        self.tokens -= sum(bundle.tokens for bundle in bundles)

    def ahead_of(self, priority: int, task: str, tokens: int) -> float:
        """Tokens that are served before a bundle of this task that would join now, if no more came; without texts."""
        higher = sum(order.tokens[SCORES] for level, order in self.orders.items() if level < priority)
        return higher + self.orders[priority].ahead_of(task, tokens)

    def texts_ahead_of(self, priority: int, task: str, rows: int) -> int:
        """Rows of texts that start before this many of a task that would join now, if no more came."""
        higher = sum(order.texts for level, order in self.orders.items() if level < priority)
        return higher + self.orders[priority].texts_ahead_of(task, rows)
