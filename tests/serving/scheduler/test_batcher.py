"""The batcher on a fake device that records its batches and finishes them on demand."""

import asyncio
import gc
import threading
import time
import weakref
from typing import Any

import pytest

from serving.errors import DeadlineExpired, Draining, Overloaded
from serving.metrics import Metrics
from serving.scheduler.batcher import Batcher
from serving.scheduler.requests import within
from serving.scheduler.selection import WINDOW_BATCHES
from tests.serving.scheduler import batch_kit
from tests.serving.scheduler.batch_kit import AnswersAtOnce, Device, FakeRow, row


@pytest.fixture
def device() -> Device:
    return Device()


def make(device: Device, metrics: Metrics | None = None, **changes: Any) -> Batcher:
    return batch_kit.make(AnswersAtOnce(device.predict), metrics, **changes)


def start(batcher: Batcher, *requests: list[FakeRow], deadline: float | None = None) -> "list[asyncio.Task]":
    return [asyncio.create_task(batcher.submit(rows, deadline=deadline)) for rows in requests]


def sizes(device: Device) -> list[int]:
    return [len(batch) for batch in device.batches]


async def test_answers_come_in_the_rows_order_whatever_the_batches(device: Device) -> None:
    batcher = make(device, max_batch_rows=3)
    rows = [row(length, first) for first, length in enumerate([5, 2, 9, 2, 7, 1, 5, 3])]
    assert await batcher.submit(rows) == rows
    assert max(sizes(device)) <= 3
    await batcher.close()


async def test_everything_runs_on_one_device_thread(device: Device) -> None:
    batcher = make(device, max_batch_rows=1)
    await asyncio.gather(*start(batcher, *[[row(2, n)] for n in range(5)]))
    assert len(device.threads) == 1
    assert threading.current_thread().name not in device.threads
    await batcher.close()


async def test_an_empty_submit_answers_nothing(device: Device) -> None:
    batcher = make(device)
    assert await batcher.submit([]) == []
    assert device.batches == []
    await batcher.close()


async def test_requests_that_come_while_the_device_works_share_a_batch_across_tasks(device: Device) -> None:
    batcher = make(device)
    first = await device.busy(batcher)
    waiting = start(batcher, [row(4, 1, "sst2")], [row(4, 2, "cola")], [row(4, 3, "stsb")])
    await asyncio.sleep(0.01)
    device.open()
    await asyncio.gather(first, *waiting)
    assert [[row.task for row in batch] for batch in device.batches] == [["sst2", "cola", "stsb"]]
    await batcher.close()


def test_an_idle_device_waits_for_more_rows_but_not_long() -> None:
    device = Device()

    async def wait() -> None:
        batcher = batch_kit.make(
            AnswersAtOnce(device.predict), device=batch_kit.TimedDevice(lambda rows: 0.0), max_wait_s=0.2
        )
        early = start(batcher, [row(2, 1)])
        await asyncio.sleep(0.15)
        late = start(batcher, [row(2, 2)])
        await asyncio.gather(*early, *late)
        assert asyncio.get_running_loop().time() == pytest.approx(0.2)
        await batcher.submit([row(2, 3), row(2, 4)])
        assert asyncio.get_running_loop().time() == pytest.approx(0.4)
        await batcher.close()

    batch_kit.virtually(wait())
    assert sizes(device) == [2, 2]


def test_a_full_batch_does_not_wait() -> None:
    device = Device()

    async def fill() -> None:
        timed = batch_kit.TimedDevice(lambda rows: 0.0)
        batcher = batch_kit.make(AnswersAtOnce(device.predict), device=timed, max_wait_s=5.0, max_batch_rows=2)
        await batcher.submit([row(2, 1), row(2, 2)])
        assert asyncio.get_running_loop().time() == 0
        await batcher.close()

    batch_kit.virtually(fill())
    assert sizes(device) == [2]


async def test_newer_rows_of_a_better_length_cannot_starve_an_old_one(device: Device) -> None:
    batcher = make(device, max_batch_rows=2, max_queued_rows=1000)
    first = await device.busy(batcher)
    odd = start(batcher, [row(90, 1)])
    crowd = start(batcher, *[[row(3, n)] for n in range(2, 60)])
    await asyncio.sleep(0.01)
    device.open()
    await asyncio.gather(first, *odd, *crowd)
    assert any(len(row.ids) == 90 for row in device.batches[0])
    await batcher.close()


async def test_only_the_oldest_rows_are_looked_at(device: Device) -> None:
    batcher = make(device, max_batch_rows=2, max_queued_rows=1000)
    window = WINDOW_BATCHES * 2
    first = await device.busy(batcher)
    waiting = start(batcher, *[[row(50 - n, n)] for n in range(window)], [row(50, 100)])
    await asyncio.sleep(0.01)
    device.open()
    await asyncio.gather(first, *waiting)
    assert [len(row.ids) for row in device.batches[0]] == [49, 50]  # not the newest, which is a perfect match
    assert device.batches[0][1].ids[0] == 0
    await batcher.close()


async def test_rows_of_one_request_with_the_same_tokens_are_one_backbone_row(device: Device) -> None:
    """Many tasks on one input are never split, even over the row limit."""
    batcher = make(device, max_batch_rows=4)
    rows = [FakeRow((7, 8, 9), f"task{n}") for n in range(6)] + [FakeRow((1, 2), f"task{n}") for n in range(6)]
    assert await batcher.submit(rows) == rows
    assert sizes(device) == [6, 6]
    assert all(len({row.ids for row in batch}) == 1 for batch in device.batches)
    await batcher.close()


async def test_a_cancelled_request_leaves_the_queue_and_frees_its_slots(device: Device) -> None:
    batcher = make(device)
    first = await device.busy(batcher)
    [gone] = start(batcher, [row(3, 1), row(3, 2)])
    stay = start(batcher, [row(3, 3)])
    await asyncio.sleep(0.01)
    assert batcher.queued_rows == 3
    gone.cancel()
    await asyncio.sleep(0.01)
    assert batcher.queued_rows == 1
    device.open()
    await asyncio.gather(first, *stay)
    assert [row.ids[0] for batch in device.batches for row in batch] == [3]
    await batcher.close()


async def test_a_request_cancelled_on_the_device_does_not_affect_others(device: Device) -> None:
    batcher = make(device)
    first = await device.busy(batcher)
    first.cancel()
    stay = start(batcher, [row(3, 1)])
    await asyncio.sleep(0.01)
    device.open()
    assert await stay[0] == [row(3, 1)]
    await batcher.close()


async def test_an_expired_request_fails_at_its_deadline_and_is_never_batched(device: Device) -> None:
    batcher = make(device)
    first = await device.busy(batcher)
    late = start(batcher, [row(3, 1)], deadline=time.monotonic() + 0.05)
    stay = start(batcher, [row(3, 2)])
    with pytest.raises(DeadlineExpired):
        await late[0]  # while the device keeps its first batch
    assert batcher.queued_rows == 1
    device.open()
    await asyncio.gather(first, *stay)
    assert [row.ids[0] for batch in device.batches for row in batch] == [2]
    await batcher.close()


async def test_an_expired_request_is_freed_at_once(device: Device) -> None:
    batcher = make(device)
    first = await device.busy(batcher)
    late_row = row(3, 1)
    kept = weakref.ref(late_row)
    gc.collect()
    gc.disable()
    try:
        [late] = start(batcher, [late_row], deadline=time.monotonic() + 0.05)
        del late_row
        with pytest.raises(DeadlineExpired) as caught:
            await late
        del late, caught
        await batch_kit.settled()
        assert kept() is None
    finally:
        gc.enable()
    device.open()
    await first
    await batcher.close()


async def test_a_deadline_that_has_passed_is_not_even_queued(device: Device) -> None:
    batcher = make(device)
    with pytest.raises(DeadlineExpired):
        await batcher.submit([row(2)], deadline=time.monotonic() - 1)
    assert device.batches == []
    await batcher.close()


async def test_a_full_queue_sheds_with_a_retry_hint(device: Device) -> None:
    metrics = Metrics()
    batcher = make(device, metrics, max_queued_rows=3)
    first = await device.busy(batcher)
    waiting = start(batcher, [row(2, 1), row(2, 2)])
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as caught:
        await batcher.submit([row(2, 3), row(2, 4)])
    assert (caught.value.queued, caught.value.limit) == (2, 3)
    assert 0 < caught.value.retry_after_s <= 30
    assert metrics.registry.get_sample_value("sidecast_shed_requests_total", {"reason": "queue"}) == 1
    assert metrics.registry.get_sample_value("sidecast_queue_rows") == 2
    device.open()
    await asyncio.gather(first, *waiting)
    assert metrics.registry.get_sample_value("sidecast_queue_rows") == 0
    await batcher.close()


async def test_a_request_larger_than_the_queue_is_admitted_if_the_queue_is_empty(device: Device) -> None:
    batcher = make(device, max_queued_rows=3)
    rows = [row(2, n) for n in range(10)]
    assert await batcher.submit(rows) == rows
    await batcher.close()


async def test_an_error_of_the_batcher_itself_ends_all_waiting_requests(device: Device, monkeypatch) -> None:
    batcher = make(device)
    with monkeypatch.context() as patch:
        patch.setattr("serving.scheduler.selection.choose", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await batcher.submit([row(2)])
    assert batcher.queued_rows == 0
    assert await batcher.submit([row(2)]) == [row(2)]
    await batcher.close()


async def test_close_fails_waiting_requests(device: Device) -> None:
    batcher = make(device)
    first = await device.busy(batcher)
    waiting = start(batcher, [row(3, 1)])
    await asyncio.sleep(0.01)
    await batcher.close()
    for task in (first, *waiting):
        with pytest.raises(Draining):
            await task
    device.open()


async def test_within_does_not_change_other_timeouts() -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with within(time.monotonic() + 60):
            raise TimeoutError("mine")
