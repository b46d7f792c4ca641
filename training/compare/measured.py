"""What one run of a comparison measured: one method with one seed."""

from dataclasses import dataclass, field
from typing import Any

from training.compare.serving_cost import ServingCost
from training.compare.step_log import StepLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of a run that ended."""

    scores: dict[str, float]
    """On the rows that count, the task's metric first."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """Of each epoch: its loss and the validation score."""
    steps: StepLog | None = None
    """None: nothing was trained."""
    train_seconds: float = 0.0
    """Training and validation, by the clock."""
    cpu_seconds: float = 0.0
    """The same, processor time of this process."""
    trained: int = 0
    """Parameters that were trained."""
    total: int = 0
    """Parameters that took part in a training step."""
    file_bytes: int = 0
    """Of what one task adds to the backbone's files."""
    serving: ServingCost | None = None
    forgetting: float | None = None
    """Nats a token; None: the backbone has no decoder."""
    peft_config: dict[str, Any] | None = None
    """PEFT's own settings of the method."""
