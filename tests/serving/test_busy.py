"""How much of the last seconds went into something."""

import pytest

from serving.busy import WINDOW_S, Share
from serving.pace import Pace


def test_a_share_is_of_the_last_seconds() -> None:
    now, total = [100.0], [7.0]
    share = Share(lambda: total[0], lambda: now[0])
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
    pace = Pace()
    assert pace.least_seconds(10, 0.5) == 0.5  # nothing is known
    pace.learn(1000, 1.0)
    assert pace.least_seconds(10, 0.5) == pytest.approx(0.01)
    assert pace.least_seconds(1000, 0.4) == 0.4
