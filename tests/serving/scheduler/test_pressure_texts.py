"""Texts on an overloaded device, on a virtual clock: which requests are answered, and in time."""

import asyncio
import random

import pytest

from serving.errors import TooSlow
from serving.metrics import Metrics
from tests.marks import slow
from tests.serving.scheduler.batch_kit import (
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


def test_a_hot_task_of_scores_cannot_slow_texts_for_ever() -> None:
    """While a text is made, a turn takes no more new tokens than `max_tokens_beside_texts`, or one input."""

    async def main() -> None:
        writer = Writer()
        batcher = make(
            writer, device=TimedDevice(step_s), max_queued_rows=10**6, max_batch_rows=64, max_batch_tokens=8000,
            max_tokens_beside_texts=100,
        )  # fmt: skip
        hot = asyncio.create_task(batcher.submit(stream_of(1000, "hot", 30, 30)))
        long = asyncio.create_task(batcher.submit([row(300, 1, "long")]))
        text = asyncio.create_task(batcher.submit([row(10, 5, "titles", steps=50)], priority=1))
        await text
        assert not hot.done()
        begun = next(n for n, (rows, _) in enumerate(writer.steps) if text.result()[0] in rows)
        beside = [rows for rows, _ in writer.steps[begun + 1 : begun + 50]]
        assert max(len(rows) for rows in beside) == 3
        assert [row(300, 1, "long")] in beside
        await asyncio.gather(hot, long)
        assert max(map(len, writer.batches)) == 64
        await batcher.close()

    virtually(main())


def test_without_a_limit_beside_texts_that_of_a_batch_holds() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(step_s), max_queued_rows=10**6, max_tokens_beside_texts=0)
        text = asyncio.create_task(batcher.submit([row(10, 5, "titles", steps=5)]))
        await settled()
        await batcher.submit(stream_of(40))
        await text
        assert {len(batch) for batch in writer.batches[1:]} == {8}
        await batcher.close()

    virtually(main())


@pytest.mark.parametrize("priority", [1, 2])
def test_a_text_too_heavy_to_ever_fit_starts_beside_others_rows(priority: int) -> None:
    """And so does not block the texts behind it, although another task has a row in each turn."""

    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(step_s), max_running_rows=8)

        async def others() -> None:
            async with asyncio.TaskGroup() as group:
                for n in range(100):
                    group.create_task(batcher.submit([row(10, 10**5 + n, "hot")], priority=priority))
                    await asyncio.sleep(0.02)

        hot = asyncio.create_task(others())
        await asyncio.sleep(0.1)
        heavy = asyncio.create_task(batcher.submit([row(5, 1, f"t{n}", steps=5) for n in range(9)]))
        await settled()
        light = asyncio.create_task(batcher.submit([row(6, 2, "light", steps=5)]))
        await asyncio.gather(heavy, light)
        assert not hot.done()
        assert any({row.task for row in batch} > {"hot"} for batch in writer.batches)
        await hot
        await batcher.close()

    virtually(main())


@pytest.mark.parametrize(
    ("over", "within_s", "spread"),
    [slow(1.2, 2.0, 0), slow(2.0, 1.0, 0), (2.0, 2.0, 0), slow(4.0, 2.0, 0), (2.0, 2.0, 25)],
)
def test_goodput_of_texts_under_too_much_load_stays_near_capacity(over: float, within_s: float, spread: int) -> None:
    """Texts of 30 tokens, or of up to so many more or less."""

    async def main() -> None:
        metrics = Metrics()
        device = TimedDevice(lambda rows: 0.02)
        batcher = make(Writer(16), metrics, device=device, max_queued_rows=10**6, max_running_rows=16)
        load, rate, seconds = Load(batcher), 16 / (30 * 0.02), 20
        count, draw = round(rate * over * seconds), random.Random(1)
        rows = [row(10, n, "titles", steps=30 + draw.randint(-spread, spread)) for n in range(count)]
        await load.run(rows, 1 / (rate * over), within_s)
        assert load.outcomes["OK"] >= 0.9 * rate * seconds
        assert load.outcomes["TOO_SLOW"] > 10 * load.outcomes["DEADLINE_EXPIRED"]
        read = metrics.registry.get_sample_value
        assert read("sidecast_shed_requests_total", {"reason": "deadline"}) == load.outcomes["TOO_SLOW"]
        assert read("sidecast_expired_rows_total") == load.outcomes["DEADLINE_EXPIRED"]
        await batcher.close()

    virtually(main())


def test_a_text_is_admitted_to_a_free_slot_however_long_others_took() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(lambda rows: 0.02), max_running_rows=4)
        await batcher.submit([row(5, 1, "titles", steps=100)])
        load = Load(batcher)
        async with asyncio.TaskGroup() as group:
            for n in range(4):
                group.create_task(load.one(row(5, n, "titles", steps=5), 0.5))
        assert load.outcomes == {"OK": 4}
        await batcher.close()

    virtually(main())


def test_a_waiting_text_that_cannot_end_in_time_is_rejected_for_one_that_can() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(lambda rows: 0.02), max_running_rows=1)
        await batcher.submit([row(5, 1, "known", steps=10)])  # 0.2 s
        load = Load(batcher)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.one(row(5, 2, "longer than most", steps=30), None))
            await asyncio.sleep(0.01)
            group.create_task(load.one(row(5, 3, "tight", steps=10), 0.7))  # has 0.1 s when its turn comes
            await asyncio.sleep(0.001)
            group.create_task(load.one(row(5, 4, "patient", steps=10), None))
        assert load.outcomes == {"OK": 2, "TOO_SLOW": 1}
        assert not any(row.task == "tight" for batch in writer.batches for row in batch)
        await batcher.close()

    virtually(main())


def test_the_backlog_of_a_hot_task_does_not_reject_a_light_tasks_text() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(lambda rows: 0.02), max_running_rows=2, max_queued_rows=10**6)
        await batcher.submit([row(5, 1, "hot", steps=10)])
        hot = asyncio.create_task(batcher.submit([row(5, n, "hot", steps=10) for n in range(300)]))
        await asyncio.sleep(1.0)
        loop = asyncio.get_running_loop()
        assert await batcher.submit([row(6, 2, "light", steps=10)], deadline=loop.time() + 1.5)
        with pytest.raises(TooSlow) as caught:
            await batcher.submit([row(6, 3, "hot", steps=10)], deadline=loop.time() + 1.5)
        assert caught.value.retry_after_s == 30.0 or caught.value.wait_s > 20
        assert not hot.done()
        hot.cancel()
        await batcher.close()

    virtually(main())
