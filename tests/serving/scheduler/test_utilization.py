"""How much of the last seconds went into something."""

import pytest

from serving.scheduler.estimates import TOO_MANY_FAILED, WINDOW_S, DeviceLoad, Throughput, Utilization


def test_a_share_is_of_the_last_seconds() -> None:
    now, total = [100.0], [7.0]
    share = Utilization(lambda: total[0], lambda: now[0])
    assert share.now == 0.0
    now[0], total[0] = 102.0, 8.0
    assert share.now == 0.5
    for _ in range(20):  # idle from here on
        now[0] += 1.0
        last = share.now
    assert last == 0.0
    now[0], total[0] = now[0] + 1.0, total[0] + 9.0  # a turn that began before
    assert 0 < share.now <= 1.0
    now[0] += 2 * WINDOW_S
    assert share.now < 1.0


def test_what_a_turn_costs_is_what_its_tokens_take_in_full_batches() -> None:
    pace = Throughput()
    assert pace.least_seconds(10, 0.5) == 0.5  # nothing is known
    pace.learn(1000, 1.0)
    assert pace.least_seconds(10, 0.5) == pytest.approx(0.01)
    assert pace.least_seconds(1000, 0.4) == 0.4


def test_texts_use_the_places_that_they_take() -> None:
    pace = Throughput()
    work = DeviceLoad(pace, places=10)
    work.turned(0.5, 100, running=0)
    assert work.seconds == 0.5  # nothing is known of the pace
    pace.learn(1000, 1.0)
    work.seconds = 0.0
    work.turned(0.5, 100, running=0)
    assert work.seconds == pytest.approx(0.1)
    work.turned(0.5, 0, running=2)
    assert work.seconds == pytest.approx(0.1 + 0.1)
    work.turned(0.5, 100, running=10)
    assert work.seconds == pytest.approx(0.2 + 0.5)


def test_a_device_on_which_nothing_comes_off_fails() -> None:
    work = DeviceLoad(Throughput(), places=1)
    for _ in range(TOO_MANY_FAILED - 1):
        work.failed(0.1)
    assert not work.fails
    work.turned(0.1, 10, running=0)
    for _ in range(TOO_MANY_FAILED):
        assert not work.fails
        work.failed(0.1)
    assert work.fails
    assert work.seconds == pytest.approx(0.1 * (2 * TOO_MANY_FAILED))
