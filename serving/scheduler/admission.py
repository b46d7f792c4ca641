"""Admission control: rejects requests that find the queue full, a task at its limit, or too little time left.

It decides before anything is computed. Reads the queue, what is in flight and the estimates, and changes none of them.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from serving.config import BatchConfig, LimitConfig
from serving.errors import DeadlineExpired, InvalidInput, Overloaded, TaskOverloaded, TooSlow
from serving.metrics import Metrics
from serving.scheduler.estimates import Estimates
from serving.scheduler.fair_queue import PRIORITIES, RowQueue
from serving.scheduler.in_flight import InFlight
from serving.scheduler.requests import Bundle, Request, Row, by_task

MIN_RETRY_S = 0.05
MAX_RETRY_S = 30.0
"""Bounds of the pause that a rejected caller is asked for."""

UNKNOWN_RETRY_S = 1.0
"""That pause while the throughput is unknown."""


@dataclass(slots=True)
class _Use:
    """What one task has waiting (rows by weight, tokens of each row) and in flight."""

    rows: int = 0
    tokens: int = 0
    requests: int = 0

    def __bool__(self) -> bool:
        return bool(self.rows or self.tokens or self.requests)


class Limiter:
    """Counts what tasks have waiting and in flight, and tells which ones are over a limit.

    A task that has nothing waiting may always queue one request, however large, and start one while it has none.
    """

    def __init__(self, config: LimitConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._limits_any = config.limits_any
        self._uses: dict[str, _Use] = {}

    def __len__(self) -> int:
        """Tasks that have anything waiting or in flight."""
        return len(self._uses)

    def refused(self, rows: Collection[Row], retry_after_s: float) -> Mapping[str, TaskOverloaded]:
        """Tasks of a new request that would be over a limit with it, each with its error."""
        errors: dict[str, TaskOverloaded] = {}
        if not self._limits_any:
            return errors
        for task, (weight, tokens) in by_task(rows).items():
            use = self._uses.get(task, _Use())
            limits = self._config.of(task)
            checks = (
                ("rows waiting", use.rows, weight, limits.max_task_rows),
                ("tokens waiting", use.tokens, tokens, limits.max_task_tokens),
                ("requests in flight", use.requests, 1, limits.max_task_requests),
            )
            for what, used, more, limit in checks:
                if limit and used and used + more > limit:
                    errors[task] = TaskOverloaded(task, what, used, limit, retry_after_s)
        return errors

    def enter(self, tasks: Iterable[str], bundles: Iterable[Bundle]) -> None:
        """A request of these tasks begins, and its bundles wait."""
        for task in tasks:
            self._use(task).requests += 1
        self._count_waiting(bundles, 1)

    def leave(self, tasks: Iterable[str]) -> None:
        """A request of these tasks is over; its bundles have left the queue before."""
        for task in tasks:
            self._use(task).requests -= 1
            self._forget_unused(task)

    def left_queue(self, bundles: Iterable[Bundle]) -> None:
        """These bundles wait no more."""
        self._count_waiting(bundles, -1)

    def _count_waiting(self, bundles: Iterable[Bundle], sign: int) -> None:
        changed = {}
        for bundle in bundles:
            for task, (weight, tokens) in bundle.uses.items():
                use = changed[task] = self._use(task)
                use.rows += sign * weight
                use.tokens += sign * tokens
        for task, use in changed.items():
            self._metrics.task_queue(task, use.rows)
            self._forget_unused(task)

    def _use(self, task: str) -> _Use:
        return self._uses.setdefault(task, _Use())

    def _forget_unused(self, task: str) -> None:
        if not self._uses[task]:
            del self._uses[task]


class Admission:
    """Rejects what cannot be answered in time, before the device has spent anything on it."""

    def __init__(
        self,
        queue: RowQueue,
        in_flight: InFlight,
        estimates: Estimates,
        limits: Limiter,
        config: BatchConfig,
        metrics: Metrics,
    ) -> None:
        self._queue = queue
        self._in_flight = in_flight
        self._estimates = estimates
        self._limits = limits
        self._config = config
        self._metrics = metrics

    def level(self, priority: int) -> int:
        """The priority from 1, served first, to 4; 0 is the configured default.

        Raises:
            InvalidInput: there is no such priority.
        """
        level = priority or self._config.default_priority
        if level not in PRIORITIES:
            raise InvalidInput("priority", f"must be 1 (the highest) to {max(PRIORITIES)}, or 0; got {priority}")
        return level

    def check_rows(self, rows: int, deadline: float | None, now: float, coming: int = 0) -> None:
        """Check what is known of a request before its rows are tokenized.

        Args:
            rows: by weight.
            coming: rows of other requests that are being tokenized: they count as if they waited.

        Raises:
            Overloaded: too many rows wait.
            DeadlineExpired: the deadline has passed.
        """
        if deadline is not None and deadline <= now:
            raise DeadlineExpired()
        self._check_room("rows", self._queue.rows + coming, rows, self._config.max_queued_rows)

    def check(self, request: Request, now: float) -> Mapping[str, TaskOverloaded]:
        """Check a request, and bundle its rows, without those of tasks that are over a limit.

        Returns:
            The tasks that are over a limit, each with its error.

        Raises:
            Overloaded: the queue is full. TooSlow: it takes longer than the deadline allows.
            DeadlineExpired: the deadline has passed.
        """
        self.check_rows(sum(row.weight for row in request.rows), request.deadline, now)
        refused = self._limits.refused(request.rows, self.retry_after_s())
        request.bundle(index for index, row in enumerate(request.rows) if row.task not in refused)
        tokens = sum(bundle.tokens for bundle in request.bundles)
        self._check_room("tokens", self._queue.tokens, tokens, self._config.max_queued_tokens)
        self._check_deadline(request, tokens, now)
        self._check_slots(request, now)
        if refused:
            self._metrics.shed("task")
        return refused

    def lateness(self, request: Request, now: float, ready: float) -> DeadlineExpired | TooSlow:
        """The error of a queued request that would be answered at `ready`, too late."""
        if request.deadline is None or request.deadline <= now:
            return DeadlineExpired()
        self._metrics.shed("deadline")
        return TooSlow(ready - now, request.deadline - now, self.retry_after_s())

    def retry_after_s(self) -> float:
        """How long the queue takes at the measured throughput, within bounds."""
        throughput = self._estimates.throughput
        return _bounded(throughput.seconds(self._queue.tokens) if throughput.is_known else UNKNOWN_RETRY_S)

    def _check_room(self, what: str, queued: int, more: int, limit: int) -> None:
        """Reject what the queue has no room for. An empty queue takes a request of any size."""
        if queued and queued + more > limit:
            self._metrics.shed("queue")
            raise Overloaded(queued, limit, self.retry_after_s(), what)

    def _check_deadline(self, request: Request, tokens: int, now: float) -> None:
        """Reject the request if, at the measured throughput, it would finish after its deadline.

        No-op until throughput is known, or when no row without a text waits. Ahead of the request are the step in
        progress and its share of the queue; its own batch may take one step more.
        """
        throughput = self._estimates.throughput
        if request.deadline is None or not request.bundles or not self._queue.scores or not throughput.is_known:
            return
        wait_s = self._estimates.step_left_s(now) + throughput.step_seconds(self._queue.tokens)
        left_s = request.deadline - now
        if wait_s + throughput.seconds(self._queue.tokens + tokens) <= left_s:
            return
        ahead = self._queue.ahead_of(request.priority, request.bundles[-1].owner, tokens)
        wait_s += throughput.seconds(ahead + tokens)
        if wait_s > left_s:
            self._metrics.shed("deadline")
            raise TooSlow(wait_s, left_s, _bounded(wait_s - left_s))

    def _check_slots(self, request: Request, now: float) -> None:
        """Reject texts that would end after their deadline, by how long earlier texts held their slots.

        No-op until a text has ended, or while a slot is free for the first of them.
        """
        hold_time = self._estimates.hold_time
        texts = [bundle for bundle in request.bundles if bundle.running]
        if request.deadline is None or not texts or not hold_time.is_known:
            return
        rows = sum(bundle.running for bundle in texts)
        running = self._in_flight.running
        ahead = self._queue.texts_ahead_of(request.priority, texts[-1].owner, rows)
        if not hold_time.wait_s(ahead + texts[0].running, running) or not (ahead or running):
            return
        needed_s = hold_time.wait_s(ahead + rows, running) + hold_time.hold_s
        left_s = request.deadline - now
        if needed_s > left_s:
            self._metrics.shed("deadline")
            raise TooSlow(needed_s, left_s, _bounded(needed_s - left_s))


def _bounded(retry_s: float) -> float:
    return min(max(retry_s, MIN_RETRY_S), MAX_RETRY_S)
