"""When a version is not asked for a while, for how long, and what is remembered of it."""

from collections.abc import Callable
from typing import Any

import pytest

from serving.engine.circuit_breaker import CircuitBreaker

BAD, GOOD = ("sst2", 7), ("sst2", 8)
PAUSE_S, MAX_PAUSE_S, FAILURES = 30.0, 3600.0, 4


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Callable[..., CircuitBreaker]:
    def make_breaker(**changes: Any) -> CircuitBreaker:
        return CircuitBreaker(1.0, "side_timeout_s", PAUSE_S, clock=clock, **changes)

    return make_breaker


def test_the_breaker_of_a_failing_version_is_open_until_the_pause_is_over(
    make: Callable[..., CircuitBreaker], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    breaker = make()
    assert breaker.check_time(BAD, 1.0) is None
    reason = breaker.check_time(BAD, 2.0)
    assert reason == "took 2.0 s for its rows of a batch, the limit is 1 s (side_timeout_s)"
    clock.now = 10.0
    assert (breaker.is_open(BAD), breaker.is_open(GOOD), breaker.explain(GOOD)) == (True, False, None)
    assert breaker.explain(BAD) == f"{reason}; it is asked again in 20 s"
    clock.now = PAUSE_S
    assert (breaker.is_open(BAD), breaker.explain(BAD)) == (False, None)
    assert caplog.messages == [f"sst2:7 {reason}; it is not asked again for 30 s"]


def test_long_rows_have_more_time(make: Callable[..., CircuitBreaker]) -> None:
    breaker = make()
    assert breaker.check_time(BAD, 3.0, times=3.0) is None
    assert breaker.check_time(BAD, 3.1, times=3.0) == (
        "took 3.1 s for its rows of a batch, the limit is 3 s (side_timeout_s)"
    )


def test_pauses_are_equal_without_back_off(make: Callable[..., CircuitBreaker], clock: Clock) -> None:
    breaker = make()
    for _ in range(3):
        breaker.check_time(BAD, 2.0)
        clock.now += PAUSE_S
        assert not breaker.is_open(BAD)


def test_pauses_double_up_to_a_limit_with_back_off(make: Callable[..., CircuitBreaker], clock: Clock) -> None:
    breaker = make(max_pause_s=MAX_PAUSE_S)
    pauses = []
    for _ in range(9):
        for _ in range(3):  # several rows of one step report the same trouble
            breaker.check_time(BAD, 2.0)
        began = clock.now
        while breaker.is_open(BAD):
            clock.now += 10.0
        pauses.append(clock.now - began)
    assert pauses == [min(PAUSE_S * 2**n, MAX_PAUSE_S) for n in range(9)]


def test_a_success_resets_the_count_of_failures(make: Callable[..., CircuitBreaker]) -> None:
    breaker = make(max_failures=FAILURES)
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.count_outcome(BAD, RuntimeError("boom"))
        breaker.count_outcome(BAD, None)
    assert not breaker.is_open(BAD)
    for _ in range(FAILURES):
        breaker.count_outcome(BAD, RuntimeError("boom"))
    assert (breaker.explain(BAD) or "").startswith("failed 4 times in a row: boom")


def test_without_a_limit_failures_open_no_breaker(make: Callable[..., CircuitBreaker]) -> None:
    breaker = make()
    for _ in range(1000):
        breaker.count_outcome(BAD, RuntimeError("boom"))
    assert not breaker.is_open(BAD)


def test_breakers_of_removed_versions_are_deleted(make: Callable[..., CircuitBreaker]) -> None:
    resident = {BAD, GOOD}
    breaker = make(max_pause_s=MAX_PAUSE_S, is_resident=resident.__contains__)
    for key in (BAD, GOOD):
        breaker.check_time(key, 2.0)
    resident.remove(BAD)
    breaker.check_time(("sst2", 9), 2.0)
    assert list(breaker._circuits) == [GOOD, ("sst2", 9)]


def test_without_back_off_a_breaker_is_deleted_after_its_pause(
    make: Callable[..., CircuitBreaker], clock: Clock
) -> None:
    breaker = make()
    breaker.check_time(BAD, 2.0)
    clock.now = PAUSE_S
    breaker.check_time(GOOD, 2.0)
    assert list(breaker._circuits) == [GOOD]
