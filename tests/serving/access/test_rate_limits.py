"""Limits of a caller, on a clock that stands still until it is moved."""

import pytest

from serving.access import rate_limits
from serving.access.rate_limits import RateLimits
from serving.config import AccessConfig
from serving.errors import RateLimited


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, **config: float) -> RateLimits:
    return RateLimits(AccessConfig(**config), clock)


def admitted(
    made: RateLimits, count: int, caller: str = "a", charges: tuple[tuple[str, int], ...] = (("t", 1),)
) -> int:
    """How many of so many requests go in."""
    going_in = 0
    for _ in range(count):
        try:
            made.take(caller, charges)
        except RateLimited:
            continue
        going_in += 1
    return going_in


def test_a_burst_goes_in_and_then_the_rate() -> None:
    clock = Clock()
    made = limits(clock, caller_requests_per_s=10, caller_burst_s=2)
    assert admitted(made, 100) == 20
    clock.now += 1
    assert admitted(made, 100) == 10
    clock.now += 1000
    assert admitted(made, 100) == 20


def test_rows_are_counted_and_a_large_request_is_paid_back() -> None:
    clock = Clock()
    made = limits(clock, caller_rows_per_s=10, caller_burst_s=1)
    made.take("a", [("t", 100)])
    with pytest.raises(RateLimited) as caught:
        made.take("a", [("t", 1)])
    assert caught.value.retry_after_s == pytest.approx(9.1)
    assert str(caught.value) == "a may send 10 rows a second to t; try again in 9.10 s"
    clock.now += 9.1
    made.take("a", [("t", 1)])


def test_callers_and_tasks_have_limits_of_their_own() -> None:
    made = limits(Clock(), caller_requests_per_s=1, caller_burst_s=1)
    assert admitted(made, 5) == admitted(made, 5, caller="b") == admitted(made, 5, charges=(("u", 1),)) == 1


def test_a_request_to_many_tasks_is_counted_for_all_or_none() -> None:
    made = limits(Clock(), caller_requests_per_s=1, caller_burst_s=2)
    assert admitted(made, 5, charges=(("t", 1),)) == 2
    assert admitted(made, 5, charges=(("u", 1), ("t", 1))) == 0
    assert admitted(made, 5, charges=(("u", 1), ("u", 1))) == 1


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_BUCKETS", 10)
    made = limits(Clock(), caller_requests_per_s=1)
    for number in range(100):
        made.take("a", [(f"task {number}", 1)])
    assert len(made._empty_at) == 10


def test_without_limits_nothing_is_kept() -> None:
    made = limits(Clock())
    assert admitted(made, 1000) == 1000
    assert not made._empty_at
