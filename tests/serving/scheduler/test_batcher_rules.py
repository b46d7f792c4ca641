"""Whatever is submitted, cancelled, expired and answered, in whatever order: every row ends once, nothing is left."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.config import LimitConfig
from serving.engine.detokenizer import Piece
from serving.errors import DeadlineExpired, Draining, Shed, TaskOverloaded
from serving.metrics import Metrics
from serving.scheduler.requests import Deliver
from tests.serving.scheduler.batch_kit import FakeRow, StepDevice, VirtualLoop, Writer, make, row, settled

TASKS = ("a", "b", "c")
ROWS, TOKENS, RUNNING = 4, 60, 3


class Watched(Writer):
    """Also checks each batch against the budgets, that bundles are whole, and fails on demand."""

    def __init__(self) -> None:
        super().__init__(RUNNING)
        self.asked: dict[int, list[FakeRow]] = {}
        """Row to the request that it belongs to."""
        self.fails = False

    def step(self, rows: Any, cancelled: Any, deliver: Deliver) -> bool:
        if self.fails:
            self.running.clear()
            raise MemoryError("told to fail")
        inputs = {row.ids for row in rows}
        weight = sum(row.weight for row in rows if row.weight <= RUNNING)  # a text too heavy to fit goes beside them
        tokens = len(inputs) * max((len(row.ids) for row in rows), default=0)
        assert len(inputs) <= 1 or (weight <= ROWS and tokens <= TOKENS), "over the budget"
        for asked in rows:
            bundle = [other for other in self.asked[id(asked)] if other.ids == asked.ids and not asked.alone]
            assert not any(id(other) in self._known for other in bundle), "a bundle was split"
        return super().step(rows, cancelled, deliver)


class Rules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop, self.device, self.writer, self.metrics = VirtualLoop(), StepDevice(), Watched(), Metrics()
        self.metrics.know(TASKS)
        limits = LimitConfig(max_task_rows=9, max_task_requests=5)
        self.tasks: list[tuple[asyncio.Task[Any], list[FakeRow]]] = []
        self.ended: list[Any] = []
        self.batcher = self.run(self.make(limits))

    async def make(self, limits: LimitConfig) -> Any:
        return make(
            self.writer,
            self.metrics,
            limits,
            self.device,
            max_batch_rows=ROWS,
            max_batch_tokens=TOKENS,
            max_running_rows=RUNNING,
            max_queued_rows=20,
            max_queued_tokens=300,
        )

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def begin(self, rows: list[FakeRow], work: Coroutine[Any, Any, Any]) -> None:
        for asked in rows:
            self.writer.asked[id(asked)] = rows
        task = self.loop.create_task(work)
        self.tasks.append((task, rows))
        self.run(settled())

    async def unary(self, rows: list[FakeRow], **how: Any) -> list[Any]:
        outcomes = await self.batcher.submit(rows, **how)
        assert len(outcomes) == len(rows)
        for asked, outcome in zip(rows, outcomes, strict=True):
            assert outcome is asked or isinstance(outcome, (MemoryError, TaskOverloaded))
        return outcomes

    async def streamed(self, asked: FakeRow, **how: Any) -> list[Any]:
        events = [event async for event in self.batcher.stream(asked, **how)]
        assert events[-1] is asked
        assert [event.tokens[0] for event in events[:-1] if isinstance(event, Piece)] == list(range(1, len(events)))
        return events

    @rule(
        kinds=st.lists(st.tuples(st.sampled_from(TASKS), st.integers(2, 25)), min_size=1, max_size=5),
        priority=st.integers(0, 4),
        time_s=st.sampled_from([None, None, 1.0, 5.0]),
    )
    def submit(self, kinds: list[tuple[str, int]], priority: int, time_s: float | None) -> None:
        rows = [row(length, length % 2, task) for task, length in kinds]
        deadline = time_s and self.loop.time() + time_s
        self.begin(rows, self.unary(rows, priority=priority, deadline=deadline))

    @rule(
        task=st.sampled_from(TASKS),
        steps=st.integers(1, 4),
        weight=st.integers(1, 4),
        streams=st.booleans(),
        time_s=st.sampled_from([None, None, 3.0]),
    )
    def write(self, task: str, steps: int, weight: int, streams: bool, time_s: float | None) -> None:
        asked = row(8, 5, task, steps=steps, weight=weight, streams=streams)
        deadline = time_s and self.loop.time() + time_s
        work = self.streamed(asked, deadline=deadline) if streams else self.unary([asked], deadline=deadline)
        self.begin([asked], work)

    @precondition(lambda self: self.device)
    @rule(seconds=st.sampled_from([0.1, 1.0]), fails=st.sampled_from([False] * 9 + [True]))
    def turn(self, seconds: float, fails: bool) -> None:
        self.run(asyncio.sleep(seconds))
        self.writer.fails = fails
        if self.device:
            self.device.take()
        self.run(settled())
        self.writer.fails = False

    @precondition(lambda self: self.tasks)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        self.tasks[which % len(self.tasks)][0].cancel()
        self.run(settled())

    @rule()
    def wait(self) -> None:
        self.run(asyncio.sleep(2.0))

    @invariant()
    def what_ended_ended_well(self) -> None:
        for task, _ in [entry for entry in self.tasks if entry[0].done()]:
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, (Shed, DeadlineExpired, MemoryError)), repr(error)
        self.tasks = [entry for entry in self.tasks if not entry[0].done()]

    @invariant()
    def counts_are_within_bounds(self) -> None:
        assert self.batcher.queued_rows >= 0
        assert self.batcher.running_rows >= 0
        assert self.metrics.registry.get_sample_value("sidecast_queue_rows") == self.batcher.queued_rows
        if not self.tasks:
            assert self.batcher.queued_rows == 0

    def teardown(self) -> None:
        for _ in range(200):
            self.run(asyncio.sleep(0.01))
            if not self.device:
                break
            self.device.take()
        self.run(settled())
        self.what_ended_ended_well()
        assert not self.tasks, "a row without an end"
        assert (self.batcher.queued_rows, self.batcher.running_rows) == (0, 0)
        assert self.writer.running == {}
        for name in ("queue_rows", "queue_tokens", "running_rows"):
            assert self.metrics.registry.get_sample_value(f"sidecast_{name}") in (0, None)
        for task in TASKS:
            assert self.metrics.registry.get_sample_value("sidecast_task_queue_rows", {"task": task}) in (0, None)
        self.run(self.batcher.close())
        self.begin([], self.batcher.submit([row(2)]))
        assert isinstance(self.tasks[-1][0].exception(), Draining)
        self.loop.close()


TestRules = Rules.TestCase
TestRules.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
class TestRulesAtLength(Rules.TestCase):
    settings = settings(max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
