"""Answers many tasks about a whole dataset with Ray Data: one backbone pass for each row, however many tasks.

Only descriptions of shards and reports flow through Ray Data. A replica reads its shard itself, answers it, writes its
part and reports. So memory is bounded by the shards in work, and a part is there whole or not at all.
"""

import contextlib
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from serving.offline.errors import ClusterBusy, NoRay, ReplicasLost, ShardFailed
from serving.offline.inputs import Shard
from serving.offline.outputs import Output
from serving.offline.placing import Placed, Replicas, place
from serving.offline.plan import Plan, Scanned, Wanted, make_plan
from serving.offline.ray_session import ray_session
from serving.offline.table import Counts
from serving.offline.worker import Replica, ReplicaConfig, as_row

MAX_BLOCKS = 2000
"""Most blocks of the dataset of shards. Up to so many shards go to replicas one by one; of more, several at a time."""
SHARDS_IN_WORK = 2
"""Of one replica: one is read or written while the device computes the other."""
START_S = 300
"""Longest time until all replicas have their resources and their process, in seconds."""
RESTARTS = 3
"""Most restarts of a replica whose process ended."""
RETRIES = 2
"""Most retries of a shard whose replica's process ended. A shard that fails otherwise is not tried again."""

Progress = Callable[[int, int], None]
"""Called with the number of rows that are done, and of all rows."""


@dataclass(slots=True, kw_only=True)
class Summary:
    """Result of a run."""

    rows: int
    """Of the input."""
    shards: int
    done_before: int
    """Rows that earlier runs had answered."""
    versions: Mapping[str, int]
    """The versions that answered, by `OfflineTask.name`."""
    counts: Counts
    """Of this run alone, without earlier runs that it resumed."""
    replicas: int = 0
    device: str = ""
    start_s: float = 0.0
    """Seconds until Ray was started or connected."""
    seconds: float = 0.0
    """Seconds from then on. The start of the replicas is part of it."""


def run_batch(
    wanted: Wanted,
    replicas: Replicas,
    progress: Progress = lambda done, total: None,
    scanned: Scanned = lambda done, total: None,
) -> Summary:
    """Answer all shards that have no part yet. Blocks until all are done.

    Args:
        progress: called when rows are done.
        scanned: called when input files were read through.

    Raises:
        OfflineError, RegistryError, ServingError, LadderError: each says what to do. Parts that are written stay.
    """
    if importlib.util.find_spec("ray") is None:  # told before minutes of reading
        raise NoRay("ray is not installed; pip install 'sidecast[cluster]'")
    wanted = wanted.absolute
    output = Output(wanted.output)
    with output.held():
        plan = make_plan(wanted, output, scanned)
        summary = Summary(
            rows=plan.inputs.rows,
            shards=len(plan.inputs.shards),
            done_before=plan.done_rows,
            versions={task.name: task.version for task in plan.tasks},
            counts=Counts(
                failures={task.name: 0 for task in plan.tasks}, truncated={task.name: 0 for task in plan.tasks}
            ),
        )
        if plan.missing:
            _run(wanted, replicas, plan, summary, progress)
            output.clean()
        return summary


def _run(wanted: Wanted, replicas: Replicas, plan: Plan, summary: Summary, progress: Progress) -> None:
    began = time.monotonic()
    progress(summary.done_before, summary.rows)
    with ray_session(replicas.address) as nodes:
        placed = place(replicas, nodes, len(plan.missing))
        summary.replicas = placed.count
        summary.device = placed.device
        summary.start_s = time.monotonic() - began
        for report in _reports(_replica_config(wanted, plan, placed), plan.missing, placed):
            if report["reason"]:
                raise ShardFailed(shard=report["shard"], reason=report["reason"], why=report["why"])
            sums = {name: report[name] for name in ("rows", "prompts", "passes", "images")}
            by_task = {name: json.loads(report[name]) for name in ("failures", "truncated")}
            summary.counts.add(Counts(**sums, **by_task))
            progress(summary.done_before + summary.counts.rows, summary.rows)
    summary.seconds = time.monotonic() - began - summary.start_s


def _replica_config(wanted: Wanted, plan: Plan, placed: Placed) -> ReplicaConfig:
    return ReplicaConfig(
        input=wanted.input,
        schema=plan.inputs.schema,
        output=wanted.output,
        format=wanted.format,
        run=plan.job.run,
        tasks=tuple(plan.tasks),
        registry=wanted.registry,
        backbone=wanted.backbone,
        device=placed.device,
        dtype=wanted.dtype,
        quantization=plan.job.quantization,
        threads=placed.cpus if placed.device == "cpu" else torch.get_num_threads(),
        limits=placed.limits,
        vision=None if plan.job.vision is None else wanted.vision,
        vision_layer=wanted.vision_layer,
        vision_size=wanted.vision_size,
        images=wanted.images,
    )


@contextlib.contextmanager
def _ray_errors(placed: Placed) -> Iterator[None]:
    """Turns Ray's errors into ClusterBusy or ReplicasLost."""
    import ray.exceptions

    try:
        yield
    except ray.exceptions.GetTimeoutError:
        raise ClusterBusy(placed.count, placed.cpus, placed.gpus, START_S) from None
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ReplicasLost(f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]) from None


def _reports(config: ReplicaConfig, shards: Sequence[Shard], placed: Placed) -> Iterator[dict[str, Any]]:
    """Each shard's report when it is done, in any order."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.wait_for_min_actors_s = START_S  # Ray's default waits without end and without a message
    rows = ray.data.from_items([as_row(shard) for shard in shards], override_num_blocks=min(len(shards), MAX_BLOCKS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # up to Ray 2.64 there is no other way to bound restarts
        reports = rows.map_batches(
            Replica,
            fn_constructor_args=(config,),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(
                size=placed.count,
                max_tasks_in_flight_per_actor=SHARDS_IN_WORK + 1,
                max_concurrent_calls_per_actor=SHARDS_IN_WORK,
                enable_true_multi_threading=True,
            ),
            num_cpus=placed.cpus,
            num_gpus=placed.gpus,
            ray_remote_args_fn=lambda: {"max_restarts": RESTARTS, "max_task_retries": RETRIES},
        )
    with _ray_errors(placed):
        yield from reports.iter_rows()
