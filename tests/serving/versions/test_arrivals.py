"""A request waits for its version alone, and is told once it need not wait any more."""

import asyncio
import time
from dataclasses import replace

import pytest

from serving.engine import Key
from serving.errors import DeadlineExpired
from serving.versions.arrivals import Arrivals
from serving.versions.placement import add
from serving.versions.pool import Failure, PoolState, SidePool
from tests.serving.kit import empty_resident
from tests.serving.versions.test_pool import task_state

KEY = "sst2", 1
FAILURE = Failure(reason="LOAD_FAILED", why="it is broken", attempts=1, transient=False, at=0.0)


class House:
    """A pool of which nothing is loaded, and what was asked to be loaded."""

    def __init__(self) -> None:
        self.pool = SidePool()
        self.asked: list[Key] = []
        tasks = {name: task_state(1, {"production": (1,)}, name=name) for name in ("sst2", "cola")}
        self.pool.replace(PoolState(generation=2, wanted=2, tasks=tasks))
        self.arrivals = Arrivals(self.pool, self.asked.append)

    def change(self, state: PoolState) -> None:
        self.arrivals.notify(self.pool.replace(state), state)

    async def waiting(self, *keys: Key, deadline: float | None = None) -> list["asyncio.Task[None]"]:
        """Requests that have begun to wait."""
        tasks = [asyncio.create_task(self.arrivals.wait(key, deadline)) for key in keys]
        await asyncio.sleep(0)
        return tasks


async def test_requests_wait_until_their_version_is_loaded_and_ask_for_it_once() -> None:
    house = House()
    first, second, other = await house.waiting(KEY, KEY, ("cola", 1))
    assert house.asked == [KEY, ("cola", 1)]
    house.change(add(house.pool.snapshot(), empty_resident("sst2")))
    await asyncio.gather(first, second)
    await asyncio.sleep(0)
    assert not other.done()
    other.cancel()


async def test_a_request_does_not_wait_for_a_version_that_failed() -> None:
    house = House()
    [request] = await house.waiting(KEY)
    house.change(replace(house.pool.snapshot(), failed={KEY: FAILURE}))
    await request


async def test_a_request_looks_again_when_its_task_changes() -> None:
    house = House()
    [request] = await house.waiting(KEY)
    state = house.pool.snapshot()
    house.change(replace(state, tasks={**state.tasks, "sst2": task_state(2, {"production": (2,)}, name="sst2")}))
    await request


async def test_a_request_waits_no_longer_than_its_deadline_and_the_next_one_asks_again() -> None:
    house = House()
    for _ in range(2):
        with pytest.raises(DeadlineExpired):
            await house.arrivals.wait(KEY, time.monotonic())
    assert house.asked == [KEY, KEY]


async def test_a_version_that_has_arrived_meanwhile_is_not_waited_for() -> None:
    house = House()
    house.pool.replace(add(house.pool.snapshot(), empty_resident("sst2")))
    await house.arrivals.wait(KEY, None)
    assert house.asked == []
