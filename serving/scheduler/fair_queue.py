"""The order in which waiting bundles are served: by priority, and within a priority fairly among tasks. No clocks.

Priorities are strict: while a bundle of a higher one waits, the lower ones get what it leaves over. Within one, tasks
take turns by the tokens they used (start-time fair queueing): each task has a tag that grows by the tokens that it is
charged for, the smallest tag is next, and a task that begins to wait starts at the tag that is being served. So a task
that queues a lot waits behind its own rows, not in front of others'. A task is charged when it is served, for a text
also while it is made, and never for rows that were cancelled or expired.

A bundle of several tasks waits in the line of the one with the largest tag, and each pays its share. What makes a text
has a line of its own per task: where no more texts may run, rows that need none overtake it.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from serving.scheduler.requests import Bundle

PRIORITIES = (1, 2, 3, 4)
"""1 is served first, as in the Open Inference Protocol."""

SCORES, TEXTS = 0, 1
"""Lines of a task: rows that are answered in one turn, and rows that make texts."""


class _Task:
    """One task's lines in one priority."""

    __slots__ = ("lines", "listed", "resting", "tag", "tokens")

    def __init__(self, tag: float) -> None:
        self.tag = tag
        """Tokens of service, in the order's own count."""
        self.tokens = [0, 0]
        """That wait, in each line."""
        self.lines: tuple[OrderedDict[int, Bundle], ...] = (OrderedDict(), OrderedDict())
        self.listed = [False, False]
        """Whether each line has its entry in the heap."""
        self.resting = False
        """Whether it is listed to be forgotten, once what it was charged is served to others too."""

    @property
    def waits(self) -> bool:
        return bool(self.lines[SCORES] or self.lines[TEXTS])


Place = tuple[float, int, Bundle]
"""(tag, number, bundle): the smallest is next. Numbers tell equal tags apart, older first."""


class FairQueue:
    """The bundles of one priority. Adding and removing cost the same however many wait."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Task] = {}
        self._scoring: dict[str, _Task] = {}
        """Those with SCORES waiting."""
        self._resting: list[tuple[float, str]] = []
        """A heap of (tag, name) of tasks that have nothing waiting; it may lag behind, as the other heaps."""
        self._heaps: tuple[list[tuple[float, int, _Task]], ...] = ([], [])
        """An entry per waiting line; tags only grow, so an entry may lag behind its task's."""
        self._now = 0.0
        """The tag that is being served."""
        self.counts = [0, 0]
        """Bundles that wait, in SCORES and in TEXTS."""
        self.tokens = [0, 0]
        self._texts: dict[str, int] = {}
        """Rows of texts that wait, by the task in whose line."""

    def __len__(self) -> int:
        return self.counts[SCORES] + self.counts[TEXTS]

    def add(self, bundle: Bundle) -> None:
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
        """Take it out unserved; False where it is not in it."""
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
            self._tasks, self._heaps, self._now = {}, ([], []), 0.0  # with nobody to share with, nobody owes anything
            self._resting = []
        elif not task.waits:
            self._rest(bundle.owner, task)
            self._forget_rested()
        return True

    def serve(self, bundles: Iterable[Bundle]) -> None:
        """Take a batch's bundles out, and charge their tasks."""
        bundles = list(bundles)
        self._now = max(self._now, min(self._tasks[bundle.owner].tag for bundle in bundles))
        for bundle in bundles:
            for task, tokens in bundle.shares.items():
                self.charge(task, tokens)
            self.remove(bundle)
        self._forget_rested()

    def charge(self, name: str, tokens: float) -> None:
        """Put so much service on a task's account, as long as others of this priority wait."""
        if not len(self):
            return
        task = self._tasks.setdefault(name, _Task(self._now))
        task.tag = (task.tag if task.waits else max(task.tag, self._now)) + tokens
        if not task.waits:
            self._rest(name, task)

    def window(self, line: int, count: int) -> list[Place]:
        """The next bundles of one kind of line, at most `count`, in their order."""
        if not self.counts[line]:
            return []
        heap, begun, found = self._heaps[line], [], []
        rest: list[tuple[float, int, Bundle, Iterator[Bundle]]] = []  # lines that are begun, each at its next bundle
        self._tidy(line)
        while len(found) < count and (heap or rest):
            if rest and not (heap and heap[0][:2] < rest[0][:2]):
                tag, number, bundle, following = rest[0]
                found.append((tag, number, bundle))
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
        return found

    def ahead_of(self, name: str, tokens: int) -> float:
        """Tokens that are served before a bundle of this task that would join now, if no more came.

        Texts do not count: they may have to wait for room, and are overtaken then.
        """
        own = self._tasks.get(name)
        waiting = own.tokens[SCORES] if own else 0
        start = own.tag if own and own.waits else max(own.tag if own else 0.0, self._now)
        end = start + waiting + tokens
        others = (each for each in self._scoring.values() if each is not own)
        return waiting + sum(min(each.tokens[SCORES], max(0.0, end - each.tag)) for each in others)

    def texts_ahead_of(self, name: str, rows: int) -> int:
        """Rows of texts that start before this many of a task that would join now, if no more came.

        Tasks take turns: of each other one no more than this task has itself.
        """
        own = self._texts.get(name, 0)
        return own + sum(min(each, own + rows) for task, each in self._texts.items() if task != name)

    def _count_texts(self, bundle: Bundle, sign: int) -> None:
        """Of a line of texts, the rows."""
        if left := self._texts.get(bundle.owner, 0) + sign * bundle.running:
            self._texts[bundle.owner] = left
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
        """The task's lines, its tag up to date as it begins to wait."""
        task = self._tasks.setdefault(name, _Task(self._now))
        if not task.waits:
            task.tag = max(task.tag, self._now)
        return task

    def _rest(self, name: str, task: _Task) -> None:
        """It has nothing waiting: to be forgotten when its tag has been served."""
        if not task.resting:
            task.resting = True
            heapq.heappush(self._resting, (task.tag, name))

    def _forget_rested(self) -> None:
        while self._resting and self._resting[0][0] <= self._now:
            _, name = heapq.heappop(self._resting)
            task = self._tasks[name]
            task.resting = False
            if task.waits:
                continue
            if task.tag > self._now:
                self._rest(name, task)
            else:
                del self._tasks[name]

    def _list(self, task: _Task, line: int) -> None:
        if task.lines[line] and not task.listed[line]:
            task.listed[line] = True
            heapq.heappush(self._heaps[line], (task.tag, next(iter(task.lines[line])), task))

    def _tidy(self, line: int) -> None:
        """Make the first entry one of a line that waits, at its task's tag."""
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
    """All that waits for the device."""

    def __init__(self) -> None:
        self.orders = {priority: FairQueue() for priority in PRIORITIES}
        self.rows = 0
        """By their weight: a beam is one."""
        self.tokens = 0
        """Without padding, each bundle's once."""
        self._number = 0

    def __len__(self) -> int:
        return sum(map(len, self.orders.values()))

    @property
    def scores(self) -> int:
        """Bundles that make no text."""
        return sum(order.counts[SCORES] for order in self.orders.values())

    def add(self, bundles: Iterable[Bundle]) -> None:
        for bundle in bundles:
            self._number += 1
            bundle.number = self._number
            self.orders[bundle.request.priority].add(bundle)
            self.rows, self.tokens = self.rows + bundle.weight, self.tokens + bundle.tokens

    def remove(self, bundles: Iterable[Bundle]) -> list[Bundle]:
        """Take them out unserved; returns those that were in it."""
        found = [bundle for bundle in bundles if self.orders[bundle.request.priority].remove(bundle)]
        self._count_out(found)
        return found

    def serve(self, bundles: Sequence[Bundle]) -> None:
        """Take a batch out, and charge its tasks for it."""
        for priority in {bundle.request.priority for bundle in bundles}:
            self.orders[priority].serve(bundle for bundle in bundles if bundle.request.priority == priority)
        self._count_out(bundles)

    def _count_out(self, bundles: Sequence[Bundle]) -> None:
        self.rows -= sum(bundle.weight for bundle in bundles)
        self.tokens -= sum(bundle.tokens for bundle in bundles)

    def ahead_of(self, priority: int, task: str, tokens: int) -> float:
        """Tokens that are served before a bundle that would join now, if no more came, without those of texts."""
        higher = sum(order.tokens[SCORES] for level, order in self.orders.items() if level < priority)
        return higher + self.orders[priority].ahead_of(task, tokens)

    def texts_ahead_of(self, priority: int, task: str, rows: int) -> int:
        """Rows of texts that start before so many of this task that would join now, if no more came."""
        higher = sum(order.texts for level, order in self.orders.items() if level < priority)
        return higher + self.orders[priority].texts_ahead_of(task, rows)
