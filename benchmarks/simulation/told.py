"""What Ray would tell the scaling policy: samples of each replica, pushed now and then."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SAMPLE_S, PUSH_S, LOOK_BACK_S = 3.0, 10.0, 15.0
"""How often a replica samples and reports, and how long a sample counts: as the application configures Ray."""


class Sample(NamedTuple):
    """One value of a metric, and when it was measured."""

    timestamp: float
    value: float


@dataclass(slots=True, kw_only=True)
class Context:
    """What the policy reads of Ray's AutoscalingContext."""

    current_time: float
    target_num_replicas: int
    running_replicas: Sequence[int]
    raw_metrics: Mapping[str, Mapping[int, Sequence[Sample]]]
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    policy_state: dict[str, Any] = field(default_factory=dict)
    total_queued_requests: float = 0.0
    total_num_requests: float = 0.0

    @property
    def current_num_replicas(self) -> int:
        """Number of running replicas."""
        return len(self.running_replicas)
