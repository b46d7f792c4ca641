"""Errors of a run over a dataset: one line each, which says what to do. A fault of a single row is not among them.

OfflineError
  UnreadableInput, MissingColumn        the dataset
  WrongTask                             the tasks
  OutputTaken                           the output belongs to another run
  ClusterTooSmall, ClusterBusy, NoRay   where the run computes
  ShardFailed, ReplicasLost             a replica gave up, or its process ended
  OutOfRoom                             a backbone pass that the device cannot hold
"""

from collections.abc import Sequence
from dataclasses import field
from typing import ClassVar

from side_registry.errors import DataclassError

GOES_ON = "the same command, without --overwrite, goes on from here"


class OfflineError(DataclassError):
    """Root of these errors."""

    reason: ClassVar[str] = "BATCH"
    """Stable name of the error, for programs."""


class UnreadableInput(OfflineError):
    """The dataset is not there or cannot be read."""

    reason = "UNREADABLE_INPUT"
    message = "{path}: {why}"
    path: str
    why: str


class MissingColumn(OfflineError):
    """A field of a task's template has no column in the dataset."""

    reason = "MISSING_COLUMN"
    task: str
    field: str
    column: str
    columns: Sequence[str]
    """Those of the dataset."""

    def __str__(self) -> str:
        has = f"task {self.task} needs a column {self.column!r}; there are {', '.join(self.columns)}"
        return f"{has}: name the right one with --rename {self.field}=COLUMN"


class WrongTask(OfflineError):
    """A task or an option cannot be used for this dataset. `task` names it."""

    reason = "WRONG_TASK"
    message = "{task}: {why}"
    task: str
    why: str


class OutputTaken(OfflineError):
    """The output cannot be written, or holds something other than this run. `why` goes on after the output's name."""

    reason = "OUTPUT_TAKEN"
    message = "{output} {why}"
    output: str
    why: str


class ClusterTooSmall(OfflineError):
    """The cluster's nodes can never hold the replicas."""

    reason = "CLUSTER_TOO_SMALL"
    count: int
    """Replicas that are wanted."""
    cpus: float
    """Of each replica."""
    gpus: float
    """Of each replica."""
    fitting: int
    """Replicas that the nodes can hold."""

    def __str__(self) -> str:
        wanted = f"{self.count} replicas of {_resources(self.cpus, self.gpus)} are wanted"
        return f"{wanted}, the cluster's nodes hold {self.fitting}; ask for fewer or smaller ones"


class ClusterBusy(OfflineError):
    """The nodes are large enough, but others have what the replicas need."""

    reason = "CLUSTER_BUSY"
    count: int
    cpus: float
    gpus: float
    waited_s: float

    def __str__(self) -> str:
        wanted = f"{self.count} replicas of {_resources(self.cpus, self.gpus)} did not all start in {self.waited_s:g} s"
        return f"{wanted}: others use the cluster; ask for fewer or smaller ones, or try again later"


def _resources(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs" if gpus else f"{cpus:g} CPUs"


class NoRay(OfflineError):
    """Ray Data is not installed, does not start, or is not at the address."""

    reason = "NO_RAY"
    message = "Ray cannot be used here: {why}"
    why: str


class ShardFailed(OfflineError):
    """A replica gave up on a shard. `reason` is that of its error."""

    message = f"{{why}} (part {{shard}}; {GOES_ON})"
    reason: str = field()  # type: ignore[misc]  # a field here, a constant in the other classes
    shard: int  # type: ignore[misc]
    why: str  # type: ignore[misc]


class ReplicasLost(OfflineError):
    """Replicas did not start, or their processes ended more often than is tried again."""

    reason = "REPLICAS_LOST"
    message = f"replicas do not start or do not last: {{why}} ({GOES_ON})"
    why: str


class OutOfRoom(OfflineError):
    """The device ran out of memory, also for passes half as large as was asked for."""

    reason = "OUT_OF_MEMORY"
    message = (
        "the device ran out of memory with passes of {rows} prompts and {tokens} tokens; "
        "give smaller --batch-tokens or --batch-rows"
    )
    rows: int
    tokens: int
