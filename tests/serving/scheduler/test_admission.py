"""Limits of tasks: how they are told, and what is counted."""

from pathlib import Path

import pytest

from serving.config import BatchConfig, ConfigError, LimitConfig, TaskLimits, read_config
from serving.metrics import Metrics
from serving.scheduler.admission import Limiter
from tests.serving.scheduler.batch_kit import bundles_of, row

NEEDED = {"backbone": "flan", "registry": "r"}


def read(tmp_path: Path, text: str) -> LimitConfig:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    return read_config(NEEDED, environ={}, file=file).limits


def test_a_tasks_table_goes_over_what_holds_for_every_task(tmp_path: Path) -> None:
    limits = read(
        tmp_path,
        "[limits]\nmax_task_rows = 100\n[limits.sst2]\nmax_task_requests = 3\n[limits.cola]\nmax_task_rows = 0",
    )
    assert limits.of("sst2") == TaskLimits(max_task_rows=100, max_task_requests=3)
    assert limits.of("cola") == TaskLimits()
    assert limits.of("another").max_task_rows == 100


def test_limits_of_every_task_can_come_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("[limits.sst2]\nmax_task_requests = 3")
    config = read_config(NEEDED, environ={"SIDECAST_MAX_TASK_ROWS": "7"}, file=file)
    assert config.limits.of("sst2") == TaskLimits(max_task_rows=7, max_task_requests=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits.sst2]\nmax_rows = 3", r"unknown settings \['max_rows'\] in \[limits.sst2\]; known are max_task_rows"),
        ("[limits.sst2]\nmax_task_rows = -1", "max_task_rows must be >= 0, got -1"),
        ("[limits.sst2]\nmax_task_rows = 'x'", "max_task_rows must be of type int, got 'x'"),
        ("[limits.sst2.more]\nmax_task_rows = 1", "unknown settings"),
        ("[limits]\ntask_limits = 3", "must be tables by task"),
        ("[batch.sst2]\nmax_task_rows = 1", "unknown settings"),
    ],
)
def test_a_wrong_limit_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("priority", [0, 5])
def test_the_default_priority_is_one_of_four(priority: int) -> None:
    with pytest.raises(ConfigError, match="default_priority"):
        BatchConfig(default_priority=priority)


def test_a_cap_beside_texts_is_no_negative_number() -> None:
    assert BatchConfig(max_tokens_beside_texts=0).max_tokens_beside_texts == 0
    with pytest.raises(ConfigError, match="max_tokens_beside_texts must be >= 0"):
        BatchConfig(max_tokens_beside_texts=-1)


def test_what_a_task_uses_is_counted_by_rows_with_their_beams_and_by_tokens() -> None:
    limiter = Limiter(LimitConfig(max_task_rows=5, max_task_tokens=40), Metrics())
    bundles = bundles_of([row(10, 1, "a"), row(10, 1, "b", weight=4, steps=1)])
    limiter.enter(["a", "b"], bundles)
    assert limiter.refused([row(10, 2, "a"), row(10, 2, "b")], 1.0) == {}
    refused = limiter.refused([row(31, 2, "a"), row(2, 2, "b", weight=2)], 1.0)
    assert {task: error.what for task, error in refused.items()} == {"a": "tokens waiting", "b": "rows waiting"}
    limiter.left_queue(bundles)
    assert limiter.refused([row(99, 2, "a")], 1.0) == {}
    limiter.leave(["a", "b"])
    assert len(limiter) == 0


def test_tasks_without_limits_are_never_refused() -> None:
    limiter = Limiter(LimitConfig(), Metrics())
    limiter.enter(["a"], bundles_of([row(10, n, "a") for n in range(50)]))
    assert limiter.refused([row(10, n, "a") for n in range(1000)], 1.0) == {}
