"""The state at a moment: by the times of commits, in the order of the log."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from side_registry import Registry, TaskRef
from side_registry import registry as module
from tests.side_registry.runs import make_run

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)


def minutes(count: float) -> datetime:
    return NOON + timedelta(minutes=count)


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Commits at 0, 1, 2, 9 (a fast clock), 3 and 4 minutes after noon."""
    times: Iterator[datetime] = map(minutes, (0, 1, 2, 9, 3, 4))

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None) -> datetime:  # type: ignore[override]
            return next(times)

    monkeypatch.setattr(module, "datetime", Clock)
    registry = Registry.open(tmp_path / "registry", create=True)
    registry.publish(make_run(tmp_path / "run-1"))
    registry.publish(make_run(tmp_path / "run-2", payload=b"weights 2", run_id="run-2"))
    registry.set_alias("sst2", "production", 2)
    registry.set_alias("sst2", "canary", 1)
    registry.rollback("sst2")
    registry.delete_task("sst2")
    return registry


def test_each_moment_has_the_state_of_its_last_commit(filled: Registry) -> None:
    before = filled.state_at(minutes(-0.01))
    assert (before.generation, dict(before.live)) == (0, {})
    production = {0: 1, 1.5: 1, 2: 2, 3: 1}
    for minute, version in production.items():
        assert filled.state_at(minutes(minute)).resolve(TaskRef("sst2")) == version
    assert not filled.state_at(minutes(4)).live
    assert filled.state_at(minutes(1e6)) == filled.state()


def test_a_fast_clock_does_not_hide_what_came_before_a_commit(filled: Registry) -> None:
    at_two, at_three = filled.state_at(minutes(2.5)), filled.state_at(minutes(3))
    assert (at_two.generation, at_two.task("sst2").serving) == (3, {"production": 2})
    assert (at_three.generation, at_three.task("sst2").serving) == (5, {"production": 1, "canary": 1})


def test_a_moment_in_another_time_zone_is_the_same_moment(filled: Registry) -> None:
    there = datetime.fromisoformat("2026-03-31T14:02:00+02:00")
    assert filled.state_at(there) == filled.state_at(minutes(2))
