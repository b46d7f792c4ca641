"""What answering a whole dataset can fail with: one line each, which says what to do. No row's own fault is among them.

OfflineError
  UnreadableInput, MissingColumn    the dataset
  WrongTask                         a task that cannot be asked here
  OutputTaken                       the output belongs to another run
  ClusterTooSmall, ClusterBusy, NoRay   where it shall run
  ShardFailed, ReplicasLost         a replica gave up, or ended
  OutOfRoom                         a pass that the device cannot hold
"""

from collections.abc import Sequence

GOES_ON = "the same command, without --overwrite, goes on from here"


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

    def __init__(self, count: int, cpus: float, gpus: float, there: int) -> None:
        super().__init__(count, cpus, gpus, there)
        self.count, self.cpus, self.gpus, self.there = count, cpus, gpus, there

    def __str__(self) -> str:
        wanted = f"{self.count} replicas of {_sized(self.cpus, self.gpus)} are wanted"
        return f"{wanted}, the cluster's nodes hold {self.there}; ask for fewer or smaller ones"


class ClusterBusy(OfflineError):
    """The nodes are large enough, but others have what the replicas need."""

    reason = "CLUSTER_BUSY"

    def __init__(self, count: int, cpus: float, gpus: float, waited_s: float) -> None:
        super().__init__(count, cpus, gpus, waited_s)
        self.count, self.cpus, self.gpus, self.waited_s = count, cpus, gpus, waited_s

    def __str__(self) -> str:
        wanted = f"{self.count} replicas of {_sized(self.cpus, self.gpus)} did not all start in {self.waited_s:g} s"
        return f"{wanted}: others use the cluster; ask for fewer or smaller ones, or try again later"


def _sized(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs" if gpus else f"{cpus:g} CPUs"


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
        return f"{self.why} (part {self.shard}; {GOES_ON})"


class ReplicasLost(OfflineError):
    """Replicas did not start, or their processes ended more often than is tried again."""

    reason = "REPLICAS_LOST"

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"replicas do not start or do not last: {self.why} ({GOES_ON})"


class OutOfRoom(OfflineError):
    """The device's memory did not suffice, not even for passes half as large as they were asked for."""

    reason = "OUT_OF_MEMORY"

    def __init__(self, rows: int, tokens: int) -> None:
        super().__init__(rows, tokens)
        self.rows, self.tokens = rows, tokens

    def __str__(self) -> str:
        tried = f"the device ran out of memory with passes of {self.rows} prompts and {self.tokens} tokens"
        return f"{tried}; give smaller --batch-tokens or --batch-rows"
