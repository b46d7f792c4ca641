"""What is learned from turns and from texts, and what of it is not believed."""

import pytest

from serving.scheduler.estimates import FAILED_STEPS, STALL, WINDOW_S, DeviceLoad, SlotHoldTime, Throughput, Utilization


def test_throughput_is_unknown_until_a_step_leaves_rows_waiting() -> None:
    throughput = Throughput()
    throughput.learn(100, 1.0, crowded=False)
    throughput.learn(0, 1.0)
    assert (throughput.is_known, throughput.seconds(50), throughput.step_seconds(50)) == (False, 0.0, 0.0)
    throughput.learn(100, 1.0)
    assert (throughput.is_known, throughput.seconds(50), throughput.step_seconds(1000)) == (True, 0.5, 1.0)


def test_a_step_that_emptied_the_queue_counts_only_if_it_was_faster() -> None:
    throughput = Throughput()
    throughput.learn(100, 1.0)
    throughput.learn(10, 0.5, crowded=False)
    assert throughput.seconds(100) == 1.0
    for _ in range(30):
        throughput.learn(10, 0.01, crowded=False)
    assert throughput.seconds(100) == pytest.approx(0.1, rel=0.1)


def test_a_stalled_step_counts_as_a_few_steps() -> None:
    stalled, slow = Throughput(), Throughput()
    for throughput in (stalled, slow):
        throughput.learn(100, 1.0)
    stalled.learn(100, 1000.0)
    slow.learn(100, STALL)
    assert stalled.seconds(100) == slow.seconds(100) < STALL
    for _ in range(30):
        stalled.learn(100, 1000.0)  # it is no stall
    assert stalled.seconds(100) == pytest.approx(1000, rel=0.1)


def test_the_wait_for_a_slot_depends_on_how_long_texts_held_slots() -> None:
    hold_time = SlotHoldTime(4)
    hold_time.learn(1.0, whole=False)
    assert (hold_time.is_known, hold_time.hold_s, hold_time.wait_s(100, 4)) == (False, 0.0, 0.0)
    hold_time.learn(2.0)
    assert (hold_time.hold_s, hold_time.wait_s(1, 3), hold_time.wait_s(1, 4), hold_time.wait_s(8, 4)) == (
        2.0,
        0.0,
        0.5,
        4.0,
    )


def test_cancelled_texts_can_only_raise_the_estimated_hold_time() -> None:
    hold_time = SlotHoldTime(4)
    hold_time.learn(2.0)
    hold_time.learn(1.0, whole=False)
    assert hold_time.hold_s == 2.0
    hold_time.learn(3.0, whole=False)
    assert hold_time.wait_s(4, 4) == pytest.approx(2.1)


def test_texts_of_all_lengths_are_allowed_more_than_the_mean() -> None:
    hold_time = SlotHoldTime(4)
    for _ in range(100):
        hold_time.learn(1.0)
        hold_time.learn(3.0)
    assert hold_time.wait_s(4, 4) == pytest.approx(2.0, rel=0.1)
    assert hold_time.hold_s == pytest.approx(4.0, rel=0.1)
    hold_time.learn(10**6)
    assert hold_time.wait_s(4, 4) < 3.0


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
    throughput = Throughput()
    assert throughput.least_seconds(10, 0.5) == 0.5  # nothing is known
    throughput.learn(1000, 1.0)
    assert throughput.least_seconds(10, 0.5) == pytest.approx(0.01)
    assert throughput.least_seconds(1000, 0.4) == 0.4


def test_running_texts_load_the_device_by_their_share_of_the_slots() -> None:
    throughput = Throughput()
    load = DeviceLoad(throughput, slots=10)
    load.add_step(0.5, 100, running=0)
    assert load.seconds == 0.5  # nothing is known of the throughput
    throughput.learn(1000, 1.0)
    load.seconds = 0.0
    load.add_step(0.5, 100, running=0)
    assert load.seconds == pytest.approx(0.1)
    load.add_step(0.5, 0, running=2)
    assert load.seconds == pytest.approx(0.1 + 0.1)
    load.add_step(0.5, 100, running=10)
    assert load.seconds == pytest.approx(0.2 + 0.5)


def test_a_device_that_delivers_nothing_counts_as_failing() -> None:
    load = DeviceLoad(Throughput(), slots=1)
    for _ in range(FAILED_STEPS - 1):
        load.add_failed_step(0.1)
    assert not load.fails
    load.add_step(0.1, 10, running=0)
    for _ in range(FAILED_STEPS):
        assert not load.fails
        load.add_failed_step(0.1)
    assert load.fails
    assert load.seconds == pytest.approx(0.1 * (2 * FAILED_STEPS))
