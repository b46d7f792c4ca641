"""Callers that wait for their answers and requests that arrive: how many at a time, when, and until when."""

import asyncio
import time

import pytest

from sidecast.loadtest.loops import PAUSE_S, closed_loop, open_loop


class Desk:
    """Answers after a while, and sees how many requests are there at a time."""

    def __init__(self, seconds: float, answered: bool = True) -> None:
        self.seconds, self.answered = seconds, answered
        self.present = self.most = 0
        self.dues: list[float] = []

    async def __call__(self, due: float) -> bool:
        self.dues.append(due)
        self.present += 1
        self.most = max(self.most, self.present)
        await asyncio.sleep(self.seconds)
        self.present -= 1
        return self.answered


async def test_callers_send_their_next_request_when_the_last_has_ended() -> None:
    desk = Desk(0.002)
    await closed_loop(desk, 3, time.perf_counter, lambda: len(desk.dues) < 30)
    assert (desk.most, desk.present) == (3, 0)
    assert 30 <= len(desk.dues) <= 32
    assert desk.dues == sorted(desk.dues)


async def test_a_caller_pauses_after_a_failure() -> None:
    desk = Desk(0.0, answered=False)
    began = time.perf_counter()
    await closed_loop(desk, 1, time.perf_counter, lambda: len(desk.dues) < 5)
    assert time.perf_counter() - began >= 5 * PAUSE_S


async def test_arrivals_wait_for_no_answer_and_the_last_is_waited_for() -> None:
    desk, began = Desk(0.1), time.perf_counter()
    times = [began + 0.01 * number for number in range(5)]
    await open_loop(desk, times, time.perf_counter)
    assert desk.dues == times
    assert (desk.most, desk.present) == (5, 0)


async def test_arrivals_beyond_the_room_wait_and_keep_the_time_they_were_due() -> None:
    desk, began = Desk(0.02), time.perf_counter()
    await open_loop(desk, [began] * 6, time.perf_counter, max_in_flight=2)
    assert desk.most == 2
    assert desk.dues == [began] * 6


async def test_arrivals_without_end_end_when_they_are_told_to() -> None:
    desk, began = Desk(0.0), time.perf_counter()
    times = (began + 0.001 * number for number in range(10**9))
    await open_loop(desk, times, time.perf_counter, going=lambda: len(desk.dues) < 20)
    assert len(desk.dues) == pytest.approx(20, abs=2)
