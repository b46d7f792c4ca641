"""Admission: limits of tasks, of the queue and of deadlines, and what the refusals say."""

import asyncio
from pathlib import Path

import pytest

from serving.config import BatchConfig, ConfigError, LimitConfig, TaskLimits, read_config
from serving.errors import DeadlineExpired, InvalidInput, Overloaded, TaskOverloaded, TooSlow
from serving.metrics import Metrics
from serving.scheduler.admission import Limiter
from tests.serving.scheduler.batch_kit import (
    Load,
    TimedDevice,
    Writer,
    bundles_of,
    make,
    row,
    settled,
    step_s,
    stream_of,
    virtually,
)

NEEDED = {"backbone": "flan", "registry": "r"}


def read(tmp_path: Path, text: str) -> LimitConfig:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    return read_config(NEEDED, environ={}, file=file).limits


def test_limits_of_a_task_override_those_of_every_task(tmp_path: Path) -> None:
    limits = read(
        tmp_path,
        "[limits]\nmax_task_rows = 100\n[limits.sst2]\nmax_task_requests = 3\n[limits.cola]\nmax_task_rows = 0",
    )
    assert limits.of("sst2") == TaskLimits(max_task_rows=100, max_task_requests=3)
    assert limits.of("cola") == TaskLimits()
    assert limits.of("another").max_task_rows == 100


def test_limits_of_every_task_can_come_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("[limits.sst2]\nmax_task_requests = 3")
    config = read_config(NEEDED, environ={"SIDECAST_MAX_TASK_ROWS": "7"}, file=file)
    assert config.limits.of("sst2") == TaskLimits(max_task_rows=7, max_task_requests=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits.sst2]\nmax_rows = 3", r"unknown settings \['max_rows'\] in \[limits.sst2\]; known are max_task_rows"),
        ("[limits.sst2]\nmax_task_rows = -1", "max_task_rows must be >= 0, got -1"),
        ("[limits.sst2]\nmax_task_rows = 'x'", "max_task_rows must be of type int, got 'x'"),
        ("[limits.sst2.more]\nmax_task_rows = 1", "unknown settings"),
        ("[limits]\ntask_limits = 3", "must be tables by task"),
        ("[batch.sst2]\nmax_task_rows = 1", "unknown settings"),
    ],
)
def test_a_wrong_limit_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("priority", [0, 5])
def test_the_default_priority_is_one_of_four(priority: int) -> None:
    with pytest.raises(ConfigError, match="default_priority"):
        BatchConfig(default_priority=priority)


def test_the_token_limit_beside_texts_cannot_be_negative() -> None:
    assert BatchConfig(max_tokens_beside_texts=0).max_tokens_beside_texts == 0
    with pytest.raises(ConfigError, match="max_tokens_beside_texts must be >= 0"):
        BatchConfig(max_tokens_beside_texts=-1)


def test_what_a_task_uses_is_counted_by_rows_with_their_beams_and_by_tokens() -> None:
    limiter = Limiter(LimitConfig(max_task_rows=5, max_task_tokens=40), Metrics())
    bundles = bundles_of([row(10, 1, "a"), row(10, 1, "b", weight=4, steps=1)])
    limiter.enter(["a", "b"], bundles)
    assert limiter.refused([row(10, 2, "a"), row(10, 2, "b")], 1.0) == {}
    refused = limiter.refused([row(31, 2, "a"), row(2, 2, "b", weight=2)], 1.0)
    assert {task: error.what for task, error in refused.items()} == {"a": "tokens waiting", "b": "rows waiting"}
    limiter.left_queue(bundles)
    assert limiter.refused([row(99, 2, "a")], 1.0) == {}
    limiter.leave(["a", "b"])
    assert len(limiter) == 0


def test_tasks_without_limits_are_never_refused() -> None:
    limiter = Limiter(LimitConfig(), Metrics())
    limiter.enter(["a"], bundles_of([row(10, n, "a") for n in range(50)]))
    assert limiter.refused([row(10, n, "a") for n in range(1000)], 1.0) == {}


def test_a_burst_is_admitted_while_throughput_is_unknown() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(step_s))
        load = Load(batcher)
        await asyncio.gather(*(load.one(asked, 5.0) for asked in stream_of(50)))
        assert load.outcomes == {"OK": 50}
        await batcher.close()

    virtually(main())


def test_a_request_is_admitted_to_an_empty_queue_however_slow_the_device_was() -> None:
    async def main() -> None:
        speed = {"slow": 100.0}
        device = TimedDevice(lambda rows: step_s(rows) * speed.get("slow", 1.0))
        batcher = make(Writer(), device=device)
        await batcher.submit(stream_of(40))
        speed.clear()
        load = Load(batcher)
        await load.run(stream_of(5), 1.0, within_s=0.1)
        assert load.outcomes == {"OK": 5}
        await batcher.close()

    virtually(main())


def test_a_request_rejected_as_late_gets_the_expected_time_and_a_retry_delay() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(step_s))
        waiting = asyncio.create_task(batcher.submit(stream_of(90)))
        await asyncio.sleep(0.15)
        loop = asyncio.get_running_loop()
        with pytest.raises(TooSlow) as caught:
            await batcher.submit([row(10)], deadline=loop.time() + 0.2)
        assert caught.value.left_s == pytest.approx(0.2)
        assert caught.value.wait_s == pytest.approx(90 / 8 * step_s([row(10)] * 8) - 0.15, rel=0.2)
        assert caught.value.retry_after_s == pytest.approx(caught.value.wait_s - 0.2)
        await waiting
        await batcher.close()

    virtually(main())


@pytest.mark.parametrize("priority", [-1, 5])
def test_other_priorities_are_refused(priority: int) -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(step_s))
        with pytest.raises(InvalidInput, match="priority"):
            await batcher.submit([row(2)], priority=priority)
        with pytest.raises(InvalidInput, match="priority"):
            await anext(batcher.stream(row(2), priority=priority))
        await batcher.close()

    virtually(main())


def test_a_deadline_that_has_passed_is_refused_before_rows_are_made() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(step_s))
        now = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExpired):
            batcher.admit(1, now)
        batcher.admit(1, now + 0.1)
        await batcher.close()

    virtually(main())


def test_a_request_that_fills_the_queue_to_its_bound_is_taken_and_the_next_is_not() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(step_s), max_queued_tokens=100)
        busy = asyncio.create_task(batcher.submit([row(10)]))
        await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(batcher.submit([row(60, 1)])), asyncio.create_task(batcher.submit([row(40, 2)]))]
        await settled()
        assert batcher.queued_tokens == 100
        with pytest.raises(Overloaded):
            await batcher.submit([row(1, 3)])
        await asyncio.gather(busy, *waiting)
        await batcher.close()

    virtually(main())


def test_the_queue_is_bounded_in_tokens_and_in_beams() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(step_s), max_queued_tokens=100, max_queued_rows=20)
        busy = asyncio.create_task(batcher.submit([row(10)]))
        await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(batcher.submit([row(60, 1)]))]
        await settled()
        with pytest.raises(Overloaded, match="60 tokens are waiting, the limit is 100") as caught:
            await batcher.submit([row(41, 2)])
        assert caught.value.what == "tokens"
        waiting.append(asyncio.create_task(batcher.submit([row(2, 3, weight=16, steps=2)])))
        await settled()
        with pytest.raises(Overloaded, match="17 rows are waiting, the limit is 20"):
            await batcher.submit([row(2, 4, weight=4, steps=2)])
        await asyncio.gather(busy, *waiting)
        await batcher.close()

    virtually(main())


def test_a_task_at_its_limit_is_refused_alone() -> None:
    async def main() -> None:
        limits = LimitConfig(max_task_rows=3, task_limits={"vip": TaskLimits()})
        metrics = Metrics()
        metrics.know(["hot", "calm"])
        batcher = make(Writer(), metrics, limits, TimedDevice(step_s))
        busy = asyncio.create_task(batcher.submit([row(10, task="other")]))
        await asyncio.sleep(0.001)
        waiting = asyncio.create_task(batcher.submit(stream_of(3, "hot")))
        await settled()
        assert metrics.registry.get_sample_value("sidecast_task_queue_rows", {"task": "hot"}) == 3
        calm, hot, vip = await batcher.submit([row(5, 1, "calm"), row(5, 1, "hot"), row(5, 1, "vip")])
        assert (calm.task, vip.task) == ("calm", "vip")
        assert isinstance(hot, TaskOverloaded)
        assert str(hot).startswith("hot has 3 rows waiting, the task's limit is 3; try again in ")
        await asyncio.gather(busy, waiting)
        assert metrics.registry.get_sample_value("sidecast_task_queue_rows", {"task": "hot"}) == 0
        assert metrics.registry.get_sample_value("sidecast_shed_requests_total", {"reason": "task"}) == 1
        await batcher.close()

    virtually(main())


@pytest.mark.parametrize(
    ("limits", "asked", "what"),
    [
        ({"max_task_tokens": 30}, 2, "tokens waiting"),
        ({"max_task_requests": 2}, 2, "requests in flight"),
    ],
)
def test_tokens_and_requests_of_a_task_are_limited(limits: dict[str, int], asked: int, what: str) -> None:
    async def main() -> None:
        batcher = make(Writer(), None, LimitConfig(task_limits={"hot": TaskLimits(**limits)}), TimedDevice(step_s))
        busy = asyncio.create_task(batcher.submit([row(10, task="other")]))
        await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(batcher.submit([row(15, n, "hot")])) for n in range(asked)]
        await settled()
        with pytest.raises(TaskOverloaded) as caught:
            await anext(batcher.stream(row(15, 9, "hot", steps=3, streams=True)))
        assert (caught.value.task, caught.value.what) == ("hot", what)
        await asyncio.gather(busy, *waiting)
        assert await batcher.submit([row(15, 10, "hot")])
        await batcher.close()

    virtually(main())


def test_a_task_with_nothing_waiting_may_queue_more_than_its_limit_at_once() -> None:
    async def main() -> None:
        batcher = make(Writer(), None, LimitConfig(max_task_rows=3, max_task_tokens=10), TimedDevice(step_s))
        rows = stream_of(12)
        assert await batcher.submit(rows) == rows
        await batcher.close()

    virtually(main())


def test_slots_of_a_task_come_back_however_its_requests_end() -> None:
    async def main() -> None:
        batcher = make(Writer(), None, LimitConfig(max_task_requests=2), TimedDevice(step_s))
        loop = asyncio.get_running_loop()
        for _ in range(5):
            gone = [asyncio.create_task(batcher.submit([row(4, n)])) for n in range(2)]
            await settled()
            gone[0].cancel()
            gone[1].cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            with pytest.raises(DeadlineExpired):
                await batcher.submit([row(10)], deadline=loop.time() + 0.001)
        assert await batcher.submit([row(4)])
        assert len(batcher._limits) == 0
        await batcher.close()

    virtually(main())
