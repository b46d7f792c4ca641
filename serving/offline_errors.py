"""What answering a whole dataset can fail with: one line each, which says what to do. No row's own fault is among them.

OfflineError
  UnreadableInput, MissingColumn    the dataset
  WrongTask                         a task that cannot be asked here
  OutputTaken                       the output belongs to another run
  ClusterTooSmall, NoRay        where it shall run
  ShardFailed                       a replica gave up
"""

from collections.abc import Sequence


class OfflineError(Exception):
    """Root of these errors."""

    reason = "BATCH"


class UnreadableInput(OfflineError):
    reason = "UNREADABLE_INPUT"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class MissingColumn(OfflineError):
    """A field of a task's template has no column in the dataset."""

    reason = "MISSING_COLUMN"

    def __init__(self, task: str, field: str, column: str, columns: Sequence[str]) -> None:
        super().__init__(task, field, column, columns)
        self.task, self.field, self.column, self.columns = task, field, column, tuple(columns)

    def __str__(self) -> str:
        wants = f"task {self.task} needs a column {self.column!r}"
        return f"{wants}; there are {', '.join(self.columns)}: name the right one with --rename {self.field}=COLUMN"


class WrongTask(OfflineError):
    reason = "WRONG_TASK"

    def __init__(self, task: str, why: str) -> None:
        super().__init__(task, why)
        self.task, self.why = task, why

    def __str__(self) -> str:
        return f"{self.task}: {self.why}"


class OutputTaken(OfflineError):
    reason = "OUTPUT_TAKEN"

    def __init__(self, output: str, why: str) -> None:
        super().__init__(output, why)
        self.output, self.why = output, why

    def __str__(self) -> str:
        return f"{self.output} {self.why}"


class ClusterTooSmall(OfflineError):
    reason = "CLUSTER_TOO_SMALL"

    def __init__(self, what: str, needed: float, there: float) -> None:
        super().__init__(what, needed, there)
        self.what, self.needed, self.there = what, needed, there

    def __str__(self) -> str:
        return (
            f"the replicas need {self.needed:g} {self.what}, the cluster has {self.there:g}; ask for fewer or smaller"
        )


class NoRay(OfflineError):
    """Ray Data is not installed, does not start, or is not at the address."""

    reason = "NO_RAY"

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"Ray cannot be used here: {self.why}"


class ShardFailed(OfflineError):
    """`reason` is that of what a replica gave up with."""

    def __init__(self, shard: int, reason: str, why: str) -> None:
        super().__init__(shard, reason, why)
        self.shard, self.reason, self.why = shard, reason, why

    def __str__(self) -> str:
        return f"{self.why} (part {self.shard}; the same command goes on from here)"
