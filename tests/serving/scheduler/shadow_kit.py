"""A device, rows and requests for tests of shadow rows in the batcher."""

from collections.abc import Sequence
from typing import Any

from serving.config import BatchConfig, ShadowConfig
from serving.metrics import Metrics
from serving.scheduler.batcher import Batcher
from serving.scheduler.requests import Row, ShadowRequest
from tests.serving.scheduler.batch_kit import SETTINGS, FakeRow, TimedDevice, row

STEP_S, TOKEN_S = 0.004, 0.0001
FIRST = 10**6
"""A row is a shadow row if its first token is at least this."""


def step_s(rows: Sequence[Row]) -> float:
    return STEP_S + TOKEN_S * sum(len(row.ids) for row in rows)


def in_shadow(row: FakeRow) -> bool:
    return row.ids[0] >= FIRST


def shadow_row(length: int, number: int = 0, **changes: Any) -> FakeRow:
    return row(length, FIRST + number, **changes)


class RecordedShadowRequest(ShadowRequest):
    """A shadow request that records the events of its rows."""

    def __init__(self, rows: Sequence[FakeRow]) -> None:
        super().__init__(rows)
        self.outcomes: dict[int, Any] = {}
        self.dropped = 0
        self.seconds = 0.0
        self.steps: list[float] = []

    def add_device_time(self, seconds: float) -> None:
        self.seconds += seconds

    def check_step_time(self, seconds: float) -> None:
        self.steps.append(seconds)

    def _on_event(self, index: int, event: Any) -> None:
        assert index not in self.outcomes
        self.outcomes[index] = event

    def _on_dropped(self, rows: int) -> None:
        self.dropped += rows


def batcher_of(
    worker: Any, shadow: dict[str, Any] | None = None, metrics: Metrics | None = None, **changes: Any
) -> Batcher:
    limits = changes.pop("limits", None)
    device = TimedDevice(step_s)
    config = BatchConfig(**SETTINGS | changes)
    return Batcher(worker, config, metrics, limits, device, ShadowConfig(**shadow or {}))
