"""The batcher under more than it can answer, on a device and a clock of its own: who is answered, and in time.

No test waits: time passes at once, and no figure depends on this machine.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from serving.config import LimitConfig, TaskLimits
from serving.errors import DeadlineExpired, InvalidInput, Overloaded, Shed, TaskOverloaded, TooSlow
from serving.metrics import Metrics
from serving.scheduler.batcher import Batcher
from serving.scheduler.requests import Bundle
from tests.marks import slow
from tests.serving.scheduler.batch_kit import FakeRow, TimedDevice, Writer, make, row, settled, virtually

BATCH_S, TOKEN_S = 0.020, 0.001


def turn_s(rows: Sequence[FakeRow]) -> float:
    """A device whose time goes by tokens with their padding, and a little for each turn."""
    return BATCH_S + TOKEN_S * len(rows) * max((len(each.ids) for each in rows), default=0)


class Load:
    """Requests of one row at a steady rate, and what became of them."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.outcomes: Counter[str] = Counter()
        self.by_task: Counter[str] = Counter()
        self.waits: dict[str, list[float]] = {}

    async def one(self, asked: FakeRow, within_s: float | None, **how: Any) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            await self._batcher.submit([asked], deadline=within_s and begun + within_s, **how)
        except (Shed, DeadlineExpired) as error:
            self.outcomes[error.reason] += 1
        else:
            self.outcomes["OK"] += 1
            self.by_task[asked.task] += 1
            self.waits.setdefault(asked.task, []).append(loop.time() - begun)

    async def run(self, rows: Iterable[FakeRow], gap_s: float, within_s: float | None = None, **how: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for asked in rows:
                group.create_task(self.one(asked, within_s, **how))
                await asyncio.sleep(gap_s)


def stream_of(count: int, task: str = "sst2", low: int = 10, high: int = 10, seed: int = 0) -> list[FakeRow]:
    draw = random.Random(seed)
    return [row(draw.randint(low, high), n, task) for n in range(count)]


async def capacity(rows: Sequence[FakeRow], callers: int) -> float:
    """Rows a second, where so many callers without deadlines ask one row after the other."""
    batcher = make(Writer(), device=TimedDevice(turn_s), max_queued_rows=10**6)
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
        batcher = make(Writer(), metrics, device=TimedDevice(turn_s), max_queued_rows=10**6)
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
        batcher = make(Writer(), device=TimedDevice(turn_s))
        load = Load(batcher)
        await load.run(stream_of(300), 0.02, within_s=0.2)
        assert load.outcomes == {"OK": 300}
        await batcher.close()

    virtually(main())


def test_company_is_waited_for_only_where_it_comes() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(turn_s), max_wait_s=0.01)
        loop = asyncio.get_running_loop()
        for n in range(6):
            await asyncio.sleep(1.0)
            begun = loop.time()
            await batcher.submit([row(10, n)])
        assert loop.time() - begun == pytest.approx(turn_s([row(10)]))  # a lone caller is not made to wait
        writer.turns.clear()
        load = Load(batcher)
        await load.run(stream_of(30), 0.002)
        assert load.outcomes == {"OK": 30}
        await asyncio.sleep(1.0)
        for n in range(3):
            await asyncio.gather(*(load.one(row(10, n), None) for n in range(4)))
        assert len(writer.batches[-1]) == 4
        await batcher.close()

    virtually(main())


def test_a_burst_on_a_server_whose_pace_is_unknown_is_let_in() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(turn_s))
        load = Load(batcher)
        await asyncio.gather(*(load.one(each, 5.0) for each in stream_of(50)))
        assert load.outcomes == {"OK": 50}
        await batcher.close()

    virtually(main())


def test_one_that_finds_no_queue_is_tried_however_slow_the_device_was_of_late() -> None:
    async def main() -> None:
        speed = {"slow": 100.0}
        device = TimedDevice(lambda rows: turn_s(rows) * speed.get("slow", 1.0))
        batcher = make(Writer(), device=device)
        await batcher.submit(stream_of(40))
        speed.clear()
        load = Load(batcher)
        await load.run(stream_of(5), 1.0, within_s=0.1)
        assert load.outcomes == {"OK": 5}
        await batcher.close()

    virtually(main())


def test_what_comes_too_late_says_how_long_it_takes_and_when_to_come_back() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(turn_s))
        waiting = asyncio.create_task(batcher.submit(stream_of(90)))
        await asyncio.sleep(0.15)
        loop = asyncio.get_running_loop()
        with pytest.raises(TooSlow) as caught:
            await batcher.submit([row(10)], deadline=loop.time() + 0.2)
        assert caught.value.left_s == pytest.approx(0.2)
        assert caught.value.wait_s == pytest.approx(90 / 8 * turn_s([row(10)] * 8) - 0.15, rel=0.2)
        assert caught.value.retry_after_s == pytest.approx(caught.value.wait_s - 0.2)
        await waiting
        await batcher.close()

    virtually(main())


def test_a_row_that_would_expire_during_its_batch_does_not_take_its_place() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(turn_s), max_batch_rows=2)
        load = Load(batcher)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.one(row(10, 1, "other"), None))
            for n in range(8):
                group.create_task(load.one(row(10, n, "other"), None))
            await asyncio.sleep(0.001)
            group.create_task(load.one(row(10, 99, "tight"), 0.065))  # a turn of two takes 0.040
        assert load.outcomes == {"OK": 9, "TOO_SLOW": 1}
        assert not any(each.task == "tight" for batch in writer.batches for each in batch)
        await batcher.close()

    virtually(main())


def test_a_request_with_many_late_rows_leaves_the_queue_once() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(turn_s), max_queued_rows=10**6)
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
        batcher = make(Writer(), device=TimedDevice(turn_s), max_running_rows=2, max_queued_rows=10**6)
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
        batcher = make(writer, device=TimedDevice(turn_s), max_queued_rows=10**6)
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


def test_tasks_that_want_more_than_there_is_get_the_same_tokens() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(turn_s), max_queued_rows=10**6)
        requests = [
            asyncio.create_task(batcher.submit(stream_of(count, task, length, length)))
            for task, count, length in (("crowd", 800, 10), ("long", 200, 40), ("few", 120, 10))
        ]
        done: Counter[str] = Counter()
        loop = asyncio.get_running_loop()
        for request, task in zip(requests, ("crowd", "long", "few"), strict=True):
            request.add_done_callback(lambda _, task=task: done.update({task: round(1000 * loop.time())}))
        await asyncio.gather(*requests)
        assert done["few"] < 0.35 * done["crowd"]
        await batcher.close()

    virtually(main())


def test_within_a_task_the_first_come_are_not_overtaken_for_ever() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(turn_s), max_queued_rows=10**6)
        odd = asyncio.create_task(batcher.submit([row(200, 1)]))
        crowd = asyncio.create_task(batcher.submit([row(3, n) for n in range(800)]))
        await odd
        assert not crowd.done()
        await crowd
        await batcher.close()

    virtually(main())


# --- priorities


def test_priorities_are_strict() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(turn_s), max_queued_rows=10**6)
        await asyncio.gather(
            batcher.submit([row(2, 0, "first")]),
            *(batcher.submit(stream_of(20, f"level {level}"), priority=level) for level in (4, 1, 3, 0, 2)),
        )
        order = [each.task for batch in writer.batches for each in batch if each.task != "first"]
        firsts = list(dict.fromkeys(order))
        assert firsts[0] == "level 1"
        assert firsts[-2:] == ["level 3", "level 4"]
        assert max(n for n, task in enumerate(order) if task == "level 2") < min(
            n for n, task in enumerate(order) if task == "level 4"
        )
        assert Counter(order) == {f"level {level}": 20 for level in range(5)}
        await batcher.close()

    virtually(main())


def test_lower_priorities_fill_what_higher_ones_leave_of_a_batch() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(turn_s))
        await asyncio.gather(
            batcher.submit(stream_of(1, "first")),
            batcher.submit(stream_of(5, "high"), priority=1),
            batcher.submit(stream_of(9, "low"), priority=4),
        )
        assert [Counter(each.task for each in batch) for batch in writer.batches] == [
            {"high": 5, "first": 1, "low": 2},
            {"low": 7},
        ]
        await batcher.close()

    virtually(main())


@pytest.mark.parametrize("priority", [-1, 5])
def test_other_priorities_are_refused(priority: int) -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(turn_s))
        with pytest.raises(InvalidInput, match="priority"):
            await batcher.submit([row(2)], priority=priority)
        with pytest.raises(InvalidInput, match="priority"):
            await anext(batcher.stream(row(2), priority=priority))
        await batcher.close()

    virtually(main())


# --- bounds


def test_the_queue_is_bounded_in_tokens_and_in_beams() -> None:
    async def main() -> None:
        batcher = make(Writer(), device=TimedDevice(turn_s), max_queued_tokens=100, max_queued_rows=20)
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
        batcher = make(Writer(), metrics, limits, TimedDevice(turn_s))
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
        batcher = make(Writer(), None, LimitConfig(task_limits={"hot": TaskLimits(**limits)}), TimedDevice(turn_s))
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
        batcher = make(Writer(), None, LimitConfig(max_task_rows=3, max_task_tokens=10), TimedDevice(turn_s))
        rows = stream_of(12)
        assert await batcher.submit(rows) == rows
        await batcher.close()

    virtually(main())


def test_slots_of_a_task_come_back_however_its_requests_end() -> None:
    async def main() -> None:
        batcher = make(Writer(), None, LimitConfig(max_task_requests=2), TimedDevice(turn_s))
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


# --- a device that is not always the same


@pytest.mark.parametrize("stalled", [1, 2])
def test_one_turn_that_stalls_does_not_make_it_shed_for_ever(stalled: int) -> None:
    async def main() -> None:
        turns = iter(range(1, 10**6))
        device = TimedDevice(lambda rows: 6.0 if next(turns) == stalled else turn_s(rows))
        batcher = make(Writer(), device=device, max_queued_rows=10**6)
        await batcher.submit(stream_of(40))
        load = Load(batcher)
        await load.run(stream_of(200), 0.02, within_s=0.3)
        load.outcomes.clear()
        await load.run(stream_of(500), 0.02, within_s=0.3)
        assert load.outcomes == {"OK": 500}
        await batcher.close()

    virtually(main())


def test_turns_that_fail_teach_no_pace() -> None:
    async def main() -> None:
        writer = Writer()

        def fail(*_: Any) -> bool:
            raise MemoryError("told to fail")

        batcher = make(writer, device=TimedDevice(turn_s), max_batch_rows=2)
        writer.turn = fail  # type: ignore[method-assign]
        outcomes = await batcher.submit(stream_of(8))
        assert all(isinstance(each, MemoryError) for each in outcomes)
        assert not batcher._pace.is_known
        await batcher.close()

    virtually(main())


# --- texts


def test_a_hot_task_of_scores_does_not_slow_texts_without_end() -> None:
    """While a text is made, a turn takes no more new tokens than `max_tokens_beside_texts`, or one input."""

    async def main() -> None:
        writer = Writer()
        batcher = make(
            writer, device=TimedDevice(turn_s), max_queued_rows=10**6, max_batch_rows=64, max_batch_tokens=8000,
            max_tokens_beside_texts=100,
        )  # fmt: skip
        hot = asyncio.create_task(batcher.submit(stream_of(1000, "hot", 30, 30)))
        long = asyncio.create_task(batcher.submit([row(300, 1, "long")]))
        text = asyncio.create_task(batcher.submit([row(10, 5, "titles", steps=50)], priority=1))
        await text
        assert not hot.done()
        begun = next(n for n, (rows, _) in enumerate(writer.turns) if text.result()[0] in rows)
        beside = [rows for rows, _ in writer.turns[begun + 1 : begun + 50]]
        assert max(len(rows) for rows in beside) == 3
        assert [row(300, 1, "long")] in beside
        await asyncio.gather(hot, long)
        assert max(map(len, writer.batches)) == 64
        await batcher.close()

    virtually(main())


def test_no_cap_beside_texts_is_that_of_a_batch() -> None:
    async def main() -> None:
        writer = Writer()
        batcher = make(writer, device=TimedDevice(turn_s), max_queued_rows=10**6, max_tokens_beside_texts=0)
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
        batcher = make(writer, device=TimedDevice(turn_s), max_running_rows=8)

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
        assert any({each.task for each in batch} > {"hot"} for batch in writer.batches)
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


def test_a_text_for_which_there_is_a_place_is_tried_however_long_others_took() -> None:
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


def test_a_waiting_text_that_cannot_end_in_time_gives_its_place_to_one_that_can() -> None:
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
        assert not any(each.task == "tight" for batch in writer.batches for each in batch)
        await batcher.close()

    virtually(main())


def test_a_light_tasks_text_is_not_refused_for_what_a_hot_one_has_waiting() -> None:
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
