"""What is learned from turns and from texts, and what of it is not believed."""

import pytest

from serving.scheduler.estimates import FAILED_STEPS, STALL, WINDOW_S, DeviceLoad, SlotHoldTime, Throughput, Utilization


def test_throughput_is_unknown_until_a_step_leaves_rows_waiting() -> None:
    pace = Throughput()
    pace.learn(100, 1.0, crowded=False)
    pace.learn(0, 1.0)
    assert (pace.is_known, pace.seconds(50), pace.step_seconds(50)) == (False, 0.0, 0.0)
    pace.learn(100, 1.0)
    assert (pace.is_known, pace.seconds(50), pace.step_seconds(1000)) == (True, 0.5, 1.0)


def test_a_step_that_emptied_the_queue_counts_only_if_it_was_faster() -> None:
    pace = Throughput()
    pace.learn(100, 1.0)
    pace.learn(10, 0.5, crowded=False)
    assert pace.seconds(100) == 1.0
    for _ in range(30):
        pace.learn(10, 0.01, crowded=False)
    assert pace.seconds(100) == pytest.approx(0.1, rel=0.1)


def test_a_stalled_step_counts_as_a_few_steps() -> None:
    stalled, slow = Throughput(), Throughput()
    for pace in (stalled, slow):
        pace.learn(100, 1.0)
    stalled.learn(100, 1000.0)
    slow.learn(100, STALL)
    assert stalled.seconds(100) == slow.seconds(100) < STALL
    for _ in range(30):
        stalled.learn(100, 1000.0)  # it is no stall
    assert stalled.seconds(100) == pytest.approx(1000, rel=0.1)


def test_the_wait_for_a_slot_depends_on_how_long_texts_held_slots() -> None:
    places = SlotHoldTime(4)
    places.learn(1.0, whole=False)
    assert (places.is_known, places.hold_s, places.wait_s(100, 4)) == (False, 0.0, 0.0)
    places.learn(2.0)
    assert (places.hold_s, places.wait_s(1, 3), places.wait_s(1, 4), places.wait_s(8, 4)) == (2.0, 0.0, 0.5, 4.0)


def test_cancelled_texts_can_only_raise_the_estimated_hold_time() -> None:
    places = SlotHoldTime(4)
    places.learn(2.0)
    places.learn(1.0, whole=False)
    assert places.hold_s == 2.0
    places.learn(3.0, whole=False)
    assert places.wait_s(4, 4) == pytest.approx(2.1)


def test_texts_of_all_lengths_are_allowed_more_than_the_mean() -> None:
    places = SlotHoldTime(4)
    for _ in range(100):
        places.learn(1.0)
        places.learn(3.0)
    assert places.wait_s(4, 4) == pytest.approx(2.0, rel=0.1)
    assert places.hold_s == pytest.approx(4.0, rel=0.1)
    places.learn(10**6)
    assert places.wait_s(4, 4) < 3.0


def test_utilization_is_of_the_last_seconds() -> None:
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


def test_the_load_of_a_step_is_the_time_of_its_tokens_in_full_batches() -> None:
    pace = Throughput()
    assert pace.least_seconds(10, 0.5) == 0.5  # nothing is known
    pace.learn(1000, 1.0)
    assert pace.least_seconds(10, 0.5) == pytest.approx(0.01)
    assert pace.least_seconds(1000, 0.4) == 0.4


def test_running_texts_load_the_device_by_their_share_of_the_slots() -> None:
    pace = Throughput()
    work = DeviceLoad(pace, slots=10)
    work.add_step(0.5, 100, running=0)
    assert work.seconds == 0.5  # nothing is known of the pace
    pace.learn(1000, 1.0)
    work.seconds = 0.0
    work.add_step(0.5, 100, running=0)
    assert work.seconds == pytest.approx(0.1)
    work.add_step(0.5, 0, running=2)
    assert work.seconds == pytest.approx(0.1 + 0.1)
    work.add_step(0.5, 100, running=10)
    assert work.seconds == pytest.approx(0.2 + 0.5)


def test_a_device_that_delivers_nothing_counts_as_failing() -> None:
    work = DeviceLoad(Throughput(), slots=1)
    for _ in range(FAILED_STEPS - 1):
        work.add_failed_step(0.1)
    assert not work.fails
    work.add_step(0.1, 10, running=0)
    for _ in range(FAILED_STEPS):
        assert not work.fails
        work.add_failed_step(0.1)
    assert work.fails
    assert work.seconds == pytest.approx(0.1 * (2 * FAILED_STEPS))
