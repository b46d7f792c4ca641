"""What each task may have waiting and in flight, so that one cannot fill the server. Knows rows and counts.

A task that has nothing waiting may always queue one request, however large; and while it has none in flight, start one.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from serving.config import LimitConfig
from serving.errors import TaskOverloaded
from serving.metrics import Metrics
from serving.scheduler.requests import Bundle, Row, by_task


@dataclass(slots=True)
class _Use:
    """What one task has waiting (rows by weight, tokens of each row) and in flight."""

    rows: int = 0
    tokens: int = 0
    requests: int = 0

    def __bool__(self) -> bool:
        return bool(self.rows or self.tokens or self.requests)


class Limiter:
    """Counts what tasks use, and says who is over a limit."""

    def __init__(self, config: LimitConfig, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._limits_any = config.limits_any
        self._uses: dict[str, _Use] = {}

    def __len__(self) -> int:
        """Tasks that use anything."""
        return len(self._uses)

    def refused(self, rows: Collection[Row], retry_after_s: float) -> Mapping[str, TaskOverloaded]:
        """Tasks of a new request that are over a limit with it, and why."""
        found: dict[str, TaskOverloaded] = {}
        if not self._limits_any:
            return found
        for task, (weight, tokens) in by_task(rows).items():
            use, limits = self._uses.get(task, _Use()), self._config.of(task)
            asked = (
                ("rows waiting", use.rows, weight, limits.max_task_rows),
                ("tokens waiting", use.tokens, tokens, limits.max_task_tokens),
                ("requests in flight", use.requests, 1, limits.max_task_requests),
            )
            for what, used, more, limit in asked:
                if limit and used and used + more > limit:
                    found[task] = TaskOverloaded(task, what, used, limit, retry_after_s)
        return found

    def enter(self, tasks: Iterable[str], bundles: Iterable[Bundle]) -> None:
        """A request of these tasks begins, and its bundles wait."""
        for task in tasks:
            self._use(task).requests += 1
        self._waiting(bundles, 1)

    def leave(self, tasks: Iterable[str]) -> None:
        """It is over; what it had waiting has left before."""
        for task in tasks:
            self._use(task).requests -= 1
            self._forget(task)

    def left_queue(self, bundles: Iterable[Bundle]) -> None:
        self._waiting(bundles, -1)

    def _waiting(self, bundles: Iterable[Bundle], sign: int) -> None:
        changed = {}
        for bundle in bundles:
            for task, (weight, tokens) in bundle.uses.items():
                use = changed[task] = self._use(task)
                use.rows += sign * weight
                use.tokens += sign * tokens
        for task, use in changed.items():
            self._metrics.task_queue(task, use.rows)
            self._forget(task)

    def _use(self, task: str) -> _Use:
        return self._uses.setdefault(task, _Use())

    def _forget(self, task: str) -> None:
        if not self._uses[task]:
            del self._uses[task]
