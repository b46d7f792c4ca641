"""Rows in shadow: behind all callers' rows, in small batches, bounded, and no part of what holds for callers."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import LimitConfig
from serving.metrics import Metrics
from serving.scheduler.shadow_queue import AGE_S, LEAST_TOKENS
from tests.serving.scheduler.batch_kit import FakeRow, Writer, row, virtually
from tests.serving.scheduler.shadow_kit import (
    STEP_S,
    TOKEN_S,
    RecordedShadowRequest,
    batcher_of,
    in_shadow,
    shadow_row,
    step_s,
)


async def elapsed(since: float) -> float:
    return asyncio.get_running_loop().time() - since


def test_shadow_rows_are_answered_while_no_live_rows_wait() -> None:
    async def main() -> None:
        batcher, asked = (
            batcher_of(Writer(), {"shadow_wait_s": 0.5}),
            RecordedShadowRequest([shadow_row(5, n) for n in range(3)]),
        )
        batcher.shadow(asked)
        await asyncio.sleep(0.49)
        assert not asked.outcomes  # they wait for company
        await asyncio.sleep(0.05)
        assert asked.outcomes == {index: asked.rows[index] for index in range(3)}
        assert (asked.dropped, asked.left) == (0, 0)
        assert asked.seconds == pytest.approx(step_s(asked.rows))
        assert asked.steps == [pytest.approx(step_s(asked.rows))]
        await batcher.close()

    virtually(main())


def test_a_full_shadow_batch_starts_at_once() -> None:
    async def main() -> None:
        batcher = batcher_of(Writer(), {"shadow_wait_s": 60.0})
        asked = RecordedShadowRequest([shadow_row(LEAST_TOKENS // 4, n) for n in range(4)])
        batcher.shadow(asked)
        await asyncio.sleep(0.1)
        assert len(asked.outcomes) == 4
        await batcher.close()

    virtually(main())


def test_waiting_shadow_rows_share_steps_whose_size_is_learned() -> None:
    async def main(turn_s: float) -> list[int]:
        worker = Writer()
        batcher = batcher_of(worker, {"shadow_turn_s": turn_s}, max_batch_rows=64, max_batch_tokens=8192)
        for n in range(400):
            batcher.shadow(RecordedShadowRequest([shadow_row(32, n)]))
        await asyncio.sleep(60)
        await batcher.close()
        return [len(rows) for rows in worker.batches]

    least = LEAST_TOKENS // 32
    short, long = virtually(main(0.001)), virtually(main(0.1))
    assert set(short) == {least}
    assert sum(long) == 400
    assert long[0] == least
    assert STEP_S + 32 * TOKEN_S * max(long) <= 0.1
    assert max(long) > 3 * least


Plan = list[tuple[float, int, int, int]]
"""Of each request: the pause before it, tokens of a row, rows, and steps of their texts (0: none)."""
plans = st.lists(
    st.tuples(st.floats(0, 0.02), st.integers(1, 40), st.integers(1, 4), st.sampled_from([0, 0, 3])), max_size=30
)


@given(plans)
@settings(max_examples=20, deadline=None)
def test_no_shadow_row_starts_while_a_live_row_waits(plan: Plan) -> None:
    check_order(plan)


@pytest.mark.slow
@given(plans)
@settings(max_examples=200, deadline=None)
def test_no_shadow_row_starts_while_many_live_rows_wait(plan: Plan) -> None:
    check_order(plan)


def check_order(plan: Plan) -> None:
    """Callers' requests, each with its shadow."""
    waiting: list[int] = []

    class Watched(Writer):
        def step(self, rows: Sequence[FakeRow], cancelled: Sequence[FakeRow], deliver: Any) -> bool:
            left = {id(text) for text in cancelled}
            turn = [*rows, *(text for text in self.running.values() if id(text) not in left)]
            assert len({in_shadow(asked) for asked in turn}) <= 1, "callers' rows share a turn with others"
            if any(map(in_shadow, rows)):
                assert len(rows) * max(len(row.ids) for row in rows) <= max(LEAST_TOKENS, 1000)
            return super().step(rows, cancelled, deliver)

    async def main() -> None:
        worker = Watched()
        batcher = batcher_of(worker, {"shadow_wait_s": 0.0})
        begin = batcher._on_device.begin

        def watched(batch: Any, now: float) -> Any:
            if any(bundle.request.is_shadow for bundle in batch):
                waiting.append(batcher.queued_rows)
            return begin(batch, now)

        batcher._on_device.begin = watched  # type: ignore[method-assign]
        shadows: list[RecordedShadowRequest] = []
        async with asyncio.TaskGroup() as group:
            for number, (gap_s, length, count, steps) in enumerate(plan):
                await asyncio.sleep(gap_s)
                rows = [row(length, 100 * number + n, steps=steps) for n in range(count)]
                group.create_task(batcher.submit(rows))
                shadows.append(
                    RecordedShadowRequest([shadow_row(length, 100 * number + n, steps=steps) for n in range(count)])
                )
                batcher.shadow(shadows[-1])
        await asyncio.sleep(100)
        for shadow in shadows:
            assert len(shadow.outcomes) + shadow.dropped == len(shadow.rows)
            assert not shadow.left
        assert not any(waiting)
        assert not batcher._shadows.rows
        await batcher.close()

    virtually(main())


def test_live_rows_wait_for_at_most_one_small_shadow_batch() -> None:
    """However much waits in shadow, a caller who finds the device busy with it waits for the turn in progress."""

    async def main() -> float:
        batcher = batcher_of(Writer(), {"shadow_turn_s": 0.02})
        for n in range(300):
            batcher.shadow(RecordedShadowRequest([shadow_row(32, n)]))
        worst = 0.0
        for n in range(50):
            await asyncio.sleep(0.0137)
            began = asyncio.get_running_loop().time()
            await batcher.submit([row(32, n)])
            worst = max(worst, await elapsed(began))
        await batcher.close()
        return worst

    one_batch = STEP_S + TOKEN_S * max(LEAST_TOKENS, 0.02 / TOKEN_S)
    assert virtually(main()) <= one_batch + step_s([row(32)]) + 1e-9


def test_a_full_shadow_queue_drops_the_newest_rows() -> None:
    async def main() -> None:
        batcher = batcher_of(Writer(), {"max_shadow_rows": 10, "shadow_wait_s": 1.0})
        first, second, third = (RecordedShadowRequest([shadow_row(2, 10 * n + k) for k in range(6)]) for n in range(3))
        for asked in (first, second, third):
            batcher.shadow(asked)
        assert [asked.dropped for asked in (first, second, third)] == [0, 2, 6]
        await asyncio.sleep(2)
        assert [sorted(asked.outcomes) for asked in (first, second, third)] == [[*range(6)], [*range(4)], []]
        await batcher.close()

    virtually(main())


def test_a_shadow_queue_of_zero_rows_runs_none() -> None:
    async def main() -> None:
        worker = Writer()
        batcher, asked = batcher_of(worker, {"max_shadow_rows": 0}), RecordedShadowRequest([shadow_row(2)])
        batcher.shadow(asked)
        await asyncio.sleep(1)
        assert (asked.dropped, worker.steps) == (1, [])
        await batcher.close()

    virtually(main())


def test_closing_drops_shadow_rows_at_once() -> None:
    async def main() -> None:
        batcher = batcher_of(Writer(), {"shadow_wait_s": 5.0, "shadow_turn_s": 0.01})
        waiting, texts = (
            RecordedShadowRequest([shadow_row(30, n) for n in range(5)]),
            RecordedShadowRequest([shadow_row(9, 99, steps=10_000)]),
        )
        batcher.shadow(texts)
        await asyncio.sleep(6)
        batcher.shadow(waiting)
        began = asyncio.get_running_loop().time()
        await batcher.close()
        assert await elapsed(began) < 5 * STEP_S + 1
        assert (waiting.dropped, texts.dropped, waiting.outcomes, texts.outcomes) == (5, 1, {}, {})
        late = RecordedShadowRequest([shadow_row(1)])
        batcher.shadow(late)
        assert late.dropped == 1

    virtually(main())


def test_shadow_rows_do_not_count_for_limits_and_estimates_of_live_rows() -> None:
    async def main() -> None:
        metrics = Metrics()
        value = metrics.registry.get_sample_value
        metrics.know(["sst2"])
        limits = LimitConfig(max_task_rows=2, max_task_requests=1)
        batcher = batcher_of(
            Writer(), {"shadow_wait_s": 0.0}, metrics, limits=limits, max_queued_rows=4, max_running_rows=2
        )
        for n in range(50):
            batcher.shadow(RecordedShadowRequest([shadow_row(20, n, steps=200 if n % 5 == 0 else 0)]))
        assert batcher.queued_rows == 0
        await asyncio.sleep(0.05)
        assert batcher.running_rows == 0
        assert not batcher._estimates.throughput.is_known
        assert value("sidecast_queue_rows") == value("sidecast_running_rows") == 0
        assert value("sidecast_task_queue_rows", {"task": "sst2"}) is None
        assert await batcher.submit([row(3), row(4)])  # neither the queue nor the task is full
        assert value("sidecast_shed_requests_total", {"reason": "queue"}) == 0
        assert value("sidecast_stage_seconds_count", {"stage": "queue"}) == 1
        await batcher.close()

    virtually(main())


def test_shadow_texts_are_limited_and_aborted_when_live_rows_come() -> None:
    async def main() -> None:
        worker = Writer()
        batcher = batcher_of(worker, {"max_running_shadows": 2, "shadow_wait_s": 0.0})
        asked = [
            RecordedShadowRequest([shadow_row(5, 3 * n + k, steps=50) for k in range(count)])
            for n, count in enumerate((1, 3, 1))
        ]
        for request in asked:
            batcher.shadow(request)
        await asyncio.sleep(STEP_S * 10)
        assert worker.most_running == 2
        await batcher.submit([row(3)])
        assert [(request.dropped, request.left) for request in asked] == [(1, 0), (1, 2), (0, 1)]
        assert [[in_shadow(text) for text in cancelled] for _, cancelled in worker.steps if cancelled] == [[True, True]]
        await asyncio.sleep(10)
        assert [(request.dropped, sorted(request.outcomes)) for request in asked] == [(1, []), (1, [1, 2]), (0, [0])]
        await batcher.close()

    virtually(main())


def test_shadow_texts_do_not_start_during_live_texts_and_are_aborted_when_these_come() -> None:
    async def main() -> None:
        worker = Writer()
        batcher = batcher_of(worker, {"shadow_wait_s": 0.0})
        caller = asyncio.create_task(batcher.submit([row(5, steps=50)]))
        await asyncio.sleep(STEP_S * 3)
        waiting = RecordedShadowRequest([shadow_row(5, n, steps=20 * n) for n in range(2)])
        batcher.shadow(waiting)
        await asyncio.sleep(STEP_S * 10)
        assert not any(in_shadow(row) for rows in worker.batches for row in rows)
        await caller
        await asyncio.sleep(STEP_S * 5)
        assert sorted(waiting.outcomes) == [0]
        await batcher.submit([row(5, 1, steps=50)])
        assert (waiting.dropped, waiting.left) == (1, 0)
        await batcher.close()

    virtually(main())


def test_live_texts_survive_failing_shadow_rows() -> None:
    class Fragile(Writer):
        def step(self, rows: Sequence[FakeRow], cancelled: Sequence[FakeRow], deliver: Any) -> bool:
            if any(map(in_shadow, rows)):
                self.running.clear()
                raise RuntimeError("boom")
            return super().step(rows, cancelled, deliver)

    async def main() -> None:
        batcher = batcher_of(Fragile(), {"shadow_wait_s": 0.0})
        caller = asyncio.create_task(batcher.submit([row(5, steps=50)]))
        await asyncio.sleep(STEP_S * 3)
        asked = RecordedShadowRequest([shadow_row(5)])
        batcher.shadow(asked)
        assert [answer.ids for answer in await caller] == [row(5).ids]
        await asyncio.sleep(1)
        assert str(asked.outcomes[0]) == "boom"
        await batcher.close()

    virtually(main())


def test_shadow_rows_that_wait_too_long_are_dropped() -> None:
    async def main() -> None:
        worker = Writer()
        batcher = batcher_of(worker, {"shadow_wait_s": 0.5})
        caller = asyncio.create_task(batcher.submit([row(5, steps=1500)]))  # at least 6 s
        old, young = (
            RecordedShadowRequest([shadow_row(5, n) for n in range(2)]),
            RecordedShadowRequest([shadow_row(5, 9)]),
        )
        batcher.shadow(old)
        await asyncio.sleep(AGE_S)
        batcher.shadow(young)
        assert (old.dropped, old.left) == (0, 2)
        await asyncio.sleep(0.6)
        assert (old.dropped, old.left) == (2, 0)  # while the caller's text goes on
        assert not caller.done()
        await caller
        await asyncio.sleep(1)
        assert (young.dropped, sorted(young.outcomes), batcher._shadows.rows) == (0, [0], 0)
        await batcher.close()

    virtually(main())


def test_shadow_rows_that_are_no_longer_compared_do_not_run() -> None:
    class Unwanted(RecordedShadowRequest):
        @property
        def is_wanted(self) -> bool:
            return False

    async def main() -> None:
        worker = Writer()
        batcher = batcher_of(worker, {"shadow_wait_s": 0.1})
        over, asked = Unwanted([shadow_row(5), shadow_row(6)]), RecordedShadowRequest([shadow_row(5, 9)])
        batcher.shadow(over)
        batcher.shadow(asked)
        await asyncio.sleep(1)
        assert (over.dropped, over.outcomes, sorted(asked.outcomes)) == (2, {}, [0])
        assert [len(rows) for rows in worker.batches] == [1]
        await batcher.close()

    virtually(main())


def test_a_shadow_step_that_raises_ends_only_its_rows() -> None:
    class Fragile(Writer):
        def step(self, rows: Sequence[FakeRow], cancelled: Sequence[FakeRow], deliver: Any) -> bool:
            if any(map(in_shadow, rows)):
                raise RuntimeError("boom")
            return super().step(rows, cancelled, deliver)

    async def main() -> None:
        batcher, asked = batcher_of(Fragile()), RecordedShadowRequest([shadow_row(5), shadow_row(6, 1)])
        batcher.shadow(asked)
        await asyncio.sleep(0.2)
        assert [str(asked.outcomes[index]) for index in range(2)] == ["boom", "boom"]
        [answer] = await batcher.submit([row(3)])
        assert answer.ids == row(3).ids
        await batcher.close()

    virtually(main())
