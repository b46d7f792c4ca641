"""Texts through the batcher: steps, streams, cancelling, and rows without a text in the same steps."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from serving.engine.detokenizer import Piece
from serving.errors import DeadlineExpired, Draining
from serving.metrics import Metrics
from serving.scheduler.batcher import Batcher
from serving.scheduler.requests import Deliver
from tests.serving.scheduler.batch_kit import FakeRow, StepDevice, TimedDevice, Writer, make, row, settled, virtually


def text(steps: int, first: int = 0, **changes: Any) -> FakeRow:
    return row(5, first, "titles", steps=steps, streams=True, **changes)


class House:
    """A batcher whose steps are taken one at a time."""

    def __init__(self, metrics: Metrics | None = None, **changes: Any) -> None:
        self.device = StepDevice()
        self.writer = Writer(changes.get("max_running_rows", 64))
        self.batcher = make(self.writer, metrics, device=self.device, **changes)

    async def step(self, count: int = 1) -> None:
        for _ in range(count):
            await settled()
            self.device.take()
            await settled()

    def start(self, *rows: FakeRow, **how: Any) -> "asyncio.Task[list[Any]]":
        return asyncio.create_task(self.batcher.submit(rows, **how))


async def collected(batcher: Batcher, asked: FakeRow, **how: Any) -> list[Any]:
    async with aclosing(batcher.stream(asked, **how)) as events:
        return [event.text if isinstance(event, Piece) else event async for event in events]


async def test_pieces_come_in_order_and_last_the_answer() -> None:
    house, asked = House(), text(3)
    stream = asyncio.create_task(collected(house.batcher, asked))
    await house.step(3)
    assert await stream == ["1 ", "2 ", "3 ", asked]
    await settled()
    assert not house.device
    await house.batcher.close()


async def test_a_piece_is_delivered_in_the_step_that_made_it() -> None:
    house = House()
    async with aclosing(house.batcher.stream(text(9))) as events:
        for n in range(1, 4):
            waiting = asyncio.ensure_future(anext(events))
            await house.step()
            assert (await waiting).text == f"{n} "
    await house.batcher.close()


async def test_a_row_that_makes_no_text_can_be_streamed_too() -> None:
    house, asked = House(), row(4)
    stream = asyncio.create_task(collected(house.batcher, asked))
    await house.step()
    assert await stream == [asked]
    await house.batcher.close()


async def test_texts_join_and_leave_while_others_run() -> None:
    house = House()
    first = house.start(text(5, 1))
    await house.step(2)
    second = house.start(text(1, 2))
    await house.step(2)  # one was on its way already
    assert (await second)[0].ids[0] == 2
    assert not first.done()
    await house.step()
    assert (await first)[0].ids[0] == 1
    assert [len(rows) for rows, _ in house.writer.steps] == [1, 0, 0, 1, 0]
    await house.batcher.close()


async def test_scoring_rows_are_answered_while_texts_run() -> None:
    house = House()
    running = house.start(text(4))
    await house.step()
    score = house.start(row(4))
    await house.step(2)
    assert score.done()
    assert not running.done()
    await house.step()
    await asyncio.gather(running, score)
    await house.batcher.close()


async def test_rows_answered_early_in_a_turn_do_not_wait_for_its_end() -> None:
    """A delivered answer reaches the caller at once, before the step ends."""
    answered, loop = asyncio.Event(), asyncio.get_running_loop()

    class Slow:
        def step(self, rows: list[FakeRow], cancelled: list[FakeRow], deliver: Deliver) -> bool:
            deliver([(rows[0], "early")])
            asyncio.run_coroutine_threadsafe(answered.wait(), loop).result(10)
            deliver([(row, "late") for row in rows[1:]])
            return False

    batcher = make(Slow())
    early, late = (asyncio.create_task(batcher.submit([row(3, n)])) for n in range(2))
    assert await early == ["early"]
    assert not late.done()
    answered.set()
    await late
    await batcher.close()


async def test_running_texts_are_limited_and_other_rows_overtake_waiting_texts() -> None:
    metrics = Metrics()
    house = House(metrics, max_running_rows=4)
    texts = [house.start(text(3, n, weight=2)) for n in range(3)]
    score = house.start(row(6))
    await house.step()
    assert score.done()
    assert house.batcher.running_rows == 4
    assert metrics.registry.get_sample_value("sidecast_running_rows") == 4
    assert house.batcher.queued_rows == 2
    await house.step(2)
    assert [text.done() for text in texts] == [True, True, False]
    await house.step(3)
    assert texts[2].done()
    assert metrics.registry.get_sample_value("sidecast_running_rows") == 0
    assert house.writer.most_running == 4
    await house.batcher.close()


async def test_a_text_heavier_than_the_limit_runs_alone_and_is_not_starved() -> None:
    house = House(max_running_rows=4)
    before = house.start(text(3, 1))
    await house.step()
    heavy = house.start(text(2, 2, weight=9))
    after = house.start(text(1, 3))
    await house.step(2)
    assert before.done()
    assert not after.done()
    await house.step(2)
    assert heavy.done()
    await house.step()
    assert after.done()
    await house.batcher.close()


async def test_texts_of_a_lower_priority_do_not_overtake_a_waiting_text() -> None:
    house = House(max_running_rows=2)
    first = house.start(text(3, 1))
    await house.step()
    urgent = house.start(text(1, 2, weight=2), priority=1)
    later = house.start(text(1, 3), priority=4)
    score = house.start(row(3), priority=4)
    await house.step(2)
    assert first.done()
    assert score.done()
    assert not later.done()
    await house.step()
    assert urgent.done()
    await house.step()
    assert later.done()
    await house.batcher.close()


async def test_closing_the_iterator_cancels_the_row_and_frees_its_slot() -> None:
    house, asked = House(max_running_rows=1), text(50)
    stream = house.batcher.stream(asked)
    waiting = asyncio.ensure_future(anext(stream))
    await house.step()
    await waiting
    other = house.start(text(1, 2))
    await stream.aclose()
    assert house.batcher.running_rows == 1  # until a turn has let it go
    await house.step(2)
    assert other.done()
    assert any(asked is cancelled_row for _, cancelled in house.writer.steps for cancelled_row in cancelled)
    await settled()
    assert (house.batcher.running_rows, house.batcher.queued_rows, bool(house.device)) == (0, 0, False)
    await house.batcher.close()


async def test_cancelling_a_request_ends_its_running_text() -> None:
    house = House()
    task = house.start(text(50))
    await house.step()
    task.cancel()
    await house.step(2)
    assert house.writer.running == {}
    assert not house.device
    assert house.batcher.running_rows == 0
    await house.batcher.close()


async def test_a_text_that_ends_in_the_step_of_its_cancellation_is_dropped() -> None:
    house = House()
    task = house.start(text(1))
    await settled()
    task.cancel()
    await house.step()
    assert not house.device
    assert [cancelled for _, cancelled in house.writer.steps] == [[]]
    await house.batcher.close()


def test_a_running_text_is_cancelled_at_its_deadline() -> None:
    async def main() -> None:
        metrics, writer = Metrics(), Writer()
        batcher = make(writer, metrics, device=TimedDevice(lambda rows: 0.1))
        with pytest.raises(DeadlineExpired):
            await collected(batcher, text(50), deadline=0.35)
        assert asyncio.get_running_loop().time() == pytest.approx(0.35)
        await asyncio.sleep(0.2)
        assert writer.running == {}
        assert metrics.registry.get_sample_value("sidecast_expired_rows_total") == 1
        await batcher.close()

    virtually(main())


def test_a_slow_consumer_of_pieces_does_not_slow_the_device() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(lambda rows: 0.1))
        async with aclosing(batcher.stream(text(3), deadline=1.0)) as events:
            assert (await anext(events)).text == "1 "
            await asyncio.sleep(5.0)
            assert [event.text async for event in events if isinstance(event, Piece)] == ["2 ", "3 "]
        await batcher.close()

    virtually(main())


async def test_a_step_that_raises_ends_all_rows_on_the_device_and_no_others() -> None:
    class Fails(Writer):
        def step(self, rows: Any, cancelled: Any, deliver: Deliver) -> bool:
            if any(row.task == "bad" for row in rows):
                self.running.clear()
                raise MemoryError("out of it")
            return super().step(rows, cancelled, deliver)

    device = StepDevice()
    batcher = make(Fails(), device=device, max_batch_rows=1)
    running = asyncio.create_task(collected(batcher, text(9)))
    await settled()
    device.take()
    bad = asyncio.create_task(batcher.submit([row(3, task="bad")]))
    good = asyncio.create_task(batcher.submit([row(3)]))
    for _ in range(2):
        await settled()
        device.take()
    await settled()
    with pytest.raises(MemoryError):
        await running
    assert isinstance((await bad)[0], MemoryError)
    assert (await good)[0].task == "sst2"
    assert batcher.running_rows == 0
    await batcher.close()


async def test_rows_that_a_worker_loses_end_with_an_error_not_a_hang() -> None:
    class Forgets:
        def step(self, rows: Any, cancelled: Any, deliver: Deliver) -> bool:
            return False

    batcher = make(Forgets())
    [outcome] = await batcher.submit([row(3)])
    assert isinstance(outcome, RuntimeError)
    with pytest.raises(RuntimeError):
        await anext(batcher.stream(text(3)))
    await batcher.close()


async def test_closing_fails_running_texts() -> None:
    house = House()
    stream = asyncio.create_task(collected(house.batcher, text(9)))
    whole = house.start(text(9, 2))
    await house.step()
    await house.batcher.close()
    for task in (stream, whole):
        with pytest.raises(Draining):
            await task
