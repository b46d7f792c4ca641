"""The batcher under overload, on a virtual clock: which requests are answered, and in time.

No test waits: time passes at once, and no figure depends on this machine.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from serving.errors import TooSlow
from serving.metrics import Metrics
from serving.scheduler.requests import Bundle
from tests.marks import slow
from tests.serving.scheduler.batch_kit import (
    FakeRow,
    Load,
    TimedDevice,
    Writer,
    make,
    row,
    settled,
    step_s,
    stream_of,
    virtually,
)


async def capacity(rows: Sequence[FakeRow], callers: int) -> float:
    """Rows a second, where so many callers without deadlines ask one row after the other."""
    batcher = make(Writer(), device=TimedDevice(step_s), max_queued_rows=10**6)
    left = iter(rows)

    async def caller() -> None:
        for asked in left:
            await batcher.submit([asked])

    await asyncio.gather(*(caller() for _ in range(callers)))
    rate = len(rows) / asyncio.get_running_loop().time()
    await batcher.close()
    return rate


@pytest.mark.parametrize(
    ("low", "high", "within_s", "over"),
    [slow(10, 10, 0.5, 2), (4, 30, 0.5, 2), slow(4, 30, 2.0, 2), slow(4, 30, 2.0, 6)],
)
def test_goodput_under_too_much_load_stays_near_capacity(low: int, high: int, within_s: float, over: int) -> None:
    """Capacity is that of as many waiting rows as can be answered within the deadline."""
    sample, seconds = stream_of(500, low=low, high=high, seed=1), 8
    rate = virtually(capacity(sample, callers=500))
    rate = virtually(capacity(sample, callers=round(rate * within_s)))

    async def main() -> None:
        metrics = Metrics()
        batcher = make(Writer(), metrics, device=TimedDevice(step_s), max_queued_rows=10**6)
        load, count = Load(batcher), round(rate * over * seconds)
        await load.run(stream_of(count, low=low, high=high), 1 / (rate * over), within_s)
        assert load.outcomes["OK"] >= 0.9 * rate * seconds
        assert sum(load.outcomes.values()) == count
        read = metrics.registry.get_sample_value
        assert read("sidecast_shed_requests_total", {"reason": "deadline"}) == load.outcomes["TOO_SLOW"] > 0
        assert read("sidecast_expired_rows_total") == load.outcomes["DEADLINE_EXPIRED"]
        assert read("sidecast_queue_rows") == read("sidecast_queue_tokens") == 0
        await batcher.close()

    virtually(main())


def test_without_pressure_nothing_is_shed() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(step_s))
        load = Load(batcher)
        await load.run(stream_of(300), 0.02, within_s=0.2)
        assert load.outcomes == {"OK": 300}
        await batcher.close()

    virtually(main())


def test_the_device_waits_for_more_rows_only_if_they_usually_come() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(step_s), max_wait_s=0.01)
        loop = asyncio.get_running_loop()
        for n in range(6):
            await asyncio.sleep(1.0)
            begun = loop.time()
            await batcher.submit([row(10, n)])
        assert loop.time() - begun == pytest.approx(step_s([row(10)]))  # a lone caller is not made to wait
        writer.steps.clear()
        load = Load(batcher)
        await load.run(stream_of(30), 0.002)
        assert load.outcomes == {"OK": 30}
        await asyncio.sleep(1.0)
        for n in range(3):
            await asyncio.gather(*(load.one(row(10, n), None) for n in range(4)))
        assert len(writer.batches[-1]) == 4
        await batcher.close()

    virtually(main())


def test_a_row_that_would_expire_during_its_batch_is_not_batched() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(step_s), max_batch_rows=2)
        load = Load(batcher)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.one(row(10, 1, "other"), None))
            for n in range(8):
                group.create_task(load.one(row(10, n, "other"), None))
            await asyncio.sleep(0.001)
            group.create_task(load.one(row(10, 99, "tight"), 0.065))  # a turn of two takes 0.040
        assert load.outcomes == {"OK": 9, "TOO_SLOW": 1}
        assert not any(row.task == "tight" for batch in writer.batches for row in batch)
        await batcher.close()

    virtually(main())


def test_a_request_with_many_late_rows_leaves_the_queue_once() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(step_s), max_queued_rows=10**6)
        removed: list[int] = []
        remove = batcher._queue.remove

        def counted(bundles: Iterable[Bundle]) -> list[Bundle]:
            bundles = list(bundles)
            removed.append(len(bundles))
            return remove(bundles)

        batcher._queue.remove = counted  # type: ignore[method-assign]
        load, loop = Load(batcher), asyncio.get_running_loop()
        late = asyncio.create_task(batcher.submit(stream_of(500, "late"), deadline=loop.time() + 0.5))
        await load.run(stream_of(100, "other"), 0.0)
        with pytest.raises(TooSlow):
            await late
        assert load.outcomes == {"OK": 100}
        assert [count for count in removed if count == 500] == [500, 500]  # as it is dropped, and as it is over
        await batcher.close()

    virtually(main())


def test_texts_that_wait_for_room_do_not_make_others_look_late() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(step_s), max_running_rows=2, max_queued_rows=10**6)
        await batcher.submit(stream_of(40))  # now its pace is known
        texts = asyncio.create_task(batcher.submit([row(50, n, "titles", steps=20) for n in range(200)]))
        await settled()
        load = Load(batcher)
        await load.run(stream_of(50), 0.05, within_s=0.3)
        assert load.outcomes == {"OK": 50}
        assert not texts.done()
        texts.cancel()
        await batcher.close()

    virtually(main())


# --- fairness


def test_a_hot_task_cannot_starve_another() -> None:
    """The light task's rows are in the next batch, whatever the hot one queues."""

    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(step_s), max_queued_rows=10**6)
        hot = asyncio.create_task(batcher.submit(stream_of(1000, "hot", 4, 30)))
        await asyncio.sleep(1.0)
        for n in range(10):
            before = len(writer.batches)
            await batcher.submit([row(12, n, "light")])
            assert len(writer.batches) - before <= 2  # the one in progress, and its own
        assert not hot.done()
        hot.cancel()
        await batcher.close()

    virtually(main())


# --- priorities


def test_priorities_are_strict() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(step_s), max_queued_rows=10**6)
        await asyncio.gather(
            batcher.submit([row(2, 0, "first")]),
            *(batcher.submit(stream_of(20, f"level {level}"), priority=level) for level in (4, 1, 3, 0, 2)),
        )
        order = [row.task for batch in writer.batches for row in batch if row.task != "first"]
        firsts = list(dict.fromkeys(order))
        assert firsts[0] == "level 1"
        assert firsts[-2:] == ["level 3", "level 4"]
        assert max(n for n, task in enumerate(order) if task == "level 2") < min(
            n for n, task in enumerate(order) if task == "level 4"
        )
        assert Counter(order) == {f"level {level}": 20 for level in range(5)}
        await batcher.close()

    virtually(main())


def test_lower_priorities_fill_the_rest_of_a_batch() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(step_s))
        await asyncio.gather(
            batcher.submit(stream_of(1, "first")),
            batcher.submit(stream_of(5, "high"), priority=1),
            batcher.submit(stream_of(9, "low"), priority=4),
        )
        assert [Counter(row.task for row in batch) for batch in writer.batches] == [
            {"high": 5, "first": 1, "low": 2},
            {"low": 7},
        ]
        await batcher.close()

    virtually(main())


# --- a device that is not always the same


@pytest.mark.parametrize("stalled", [1, 2])
def test_one_stalled_step_does_not_cause_rejections_for_ever(stalled: int) -> None:
    async def main() -> None:
        turns = iter(range(1, 10**6))
        device = TimedDevice(lambda rows: 6.0 if next(turns) == stalled else step_s(rows))
        batcher = make(Writer(), device=device, max_queued_rows=10**6)
        await batcher.submit(stream_of(40))
        load = Load(batcher)
        await load.run(stream_of(200), 0.02, within_s=0.3)
        load.outcomes.clear()
        await load.run(stream_of(500), 0.02, within_s=0.3)
        assert load.outcomes == {"OK": 500}
        await batcher.close()

    virtually(main())


def test_failed_steps_do_not_count_for_throughput() -> None:
    async def main() -> None:
        writer = Writer()

        def fail(*_: Any) -> bool:
            raise MemoryError("told to fail")

        batcher = make(writer, device=TimedDevice(step_s), max_batch_rows=2)
        writer.step = fail  # type: ignore[method-assign]
        outcomes = await batcher.submit(stream_of(8))
        assert all(isinstance(outcome, MemoryError) for outcome in outcomes)
        assert not batcher._estimates.throughput.is_known
        await batcher.close()

    virtually(main())
