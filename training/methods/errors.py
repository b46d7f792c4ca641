"""Why a comparison cannot be made as asked."""

from dataclasses import dataclass

from training.errors import TrainingError


@dataclass(eq=False)
class CompareError(TrainingError):
    """A comparison cannot be made as asked."""

    subject: str
    """The folder, task, method or option at fault."""
    why: str

    reason = "BAD_COMPARISON"
    message = "{self.subject}: {self.why}"
