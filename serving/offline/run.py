"""Answers many tasks about a whole dataset, with Ray Data: one backbone pass for each row, however many tasks.

What flows through Ray Data are shards by name and reports of them: a replica reads its shard itself, answers it, writes
its part and reports. So memory is bounded by the shards in work, and a part is there whole or not at all.
"""

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from serving.offline.errors import ClusterBusy, ClusterTooSmall, NoRay, ReplicasLost, ShardFailed
from serving.offline.inputs import Shard
from serving.offline.outputs import Output
from serving.offline.plan import Plan, Scanned, Wanted, make_plan
from serving.offline.table import Counts, PassLimits
from serving.offline.worker import Replica, Work, as_row

MAX_CALLS = 2000
"""Shards go to replicas one by one up to so many; of more, several at a time."""
IN_WORK = 2
"""Shards of a replica: one is read or written while the device computes the other."""

START_S = 300
"""So long may replicas take until all have their room and their process."""
RESTARTS, RETRIES = 3, 2
"""Of a replica, and of a shard whose replica ended. A shard's own faults are none of these."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning else
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # on standard error, of actors whose arguments might be lost
}
"""Of Ray's environment, where a user has not set them."""

Progress = Callable[[int, int], None]
"""Told rows that are done, and all rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """Where and how a run computes. Nothing here changes its answers."""

    address: str = ""
    """A Ray cluster's; "" starts Ray in this machine for the length of the run."""
    device: str = "auto"
    """cpu or cuda; auto: cuda where the cluster has GPUs."""
    count: int = 0
    """0: one for each GPU, or one on each node's CPUs."""
    gpus: float = 1.0
    """Of each, on cuda: a part of one GPU, or whole ones."""
    cpus: int = 0
    """Of each. 0: on cpu, as many as so many replicas can have; on cuda, one."""
    limits: PassLimits = field(default_factory=PassLimits)


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a run came to."""

    rows: int
    """Of the input."""
    shards: int
    done_before: int
    """Rows that earlier runs had answered."""
    versions: Mapping[str, int]
    """By the name of a task's columns."""
    counts: Counts
    """Of this run alone."""
    replicas: int = 0
    device: str = ""
    start_s: float = 0.0
    """Until Ray was there."""
    seconds: float = 0.0
    """From then on; the replicas' start is part of it."""


def run_batch(
    wanted: Wanted,
    replicas: Replicas,
    progress: Progress = lambda done, total: None,
    scanned: Scanned = lambda done, total: None,
) -> Summary:
    """Answer what is not answered yet. Blocks until all is done.

    Raises:
        OfflineError, RegistryError, ServingError, LadderError: each says what to do; what is done stays done.
    """
    wanted = wanted.absolute
    output = Output(wanted.output)
    with output.held():
        plan = make_plan(wanted, output, scanned)
        summary = Summary(
            rows=plan.inputs.rows,
            shards=len(plan.inputs.shards),
            done_before=plan.done_rows,
            versions={task.name: task.version for task in plan.tasks},
            counts=Counts(failures={task.name: 0 for task in plan.tasks}),
        )
        if plan.missing:
            _run(wanted, replicas, plan, summary, progress)
            output.clean()
        return summary


def _run(wanted: Wanted, replicas: Replicas, plan: Plan, summary: Summary, progress: Progress) -> None:
    began = time.monotonic()
    progress(summary.done_before, summary.rows)
    with _ray(replicas.address) as nodes:
        placed = place(replicas, nodes, len(plan.missing))
        summary.replicas, summary.device = placed.count, placed.device
        summary.start_s = time.monotonic() - began
        for report in _reports(_work(wanted, plan, placed), plan.missing, placed):
            if report["reason"]:
                raise ShardFailed(report["shard"], report["reason"], report["why"])
            failures = json.loads(report["failures"])
            counted = Counts(rows=report["rows"], prompts=report["prompts"], passes=report["passes"], failures=failures)
            summary.counts.add(counted)
            progress(summary.done_before + summary.counts.rows, summary.rows)
    summary.seconds = time.monotonic() - began - summary.start_s


Node = Mapping[str, float]
"""A node's resources by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Replicas that a cluster can hold."""

    count: int
    device: str
    cpus: int
    gpus: float
    limits: PassLimits


def place(replicas: Replicas, nodes: Sequence[Node], shards: int) -> Placed:
    """What each node can hold; a replica is never on two. Raises ClusterTooSmall."""
    gpus = any(node.get("GPU") for node in nodes)
    device = ("cuda" if gpus else "cpu") if replicas.device == "auto" else replicas.device
    each = replicas.gpus if device.startswith("cuda") else 0.0
    there = sum(_on_gpus(node, each) for node in nodes) if each else sum(_on_cpus(node, 1) > 0 for node in nodes)
    count = min(replicas.count or there or 1, shards)
    own = replicas.cpus or (1 if each else _largest(nodes, count))
    held = sum(min(_on_cpus(node, own), _on_gpus(node, each) if each else count) for node in nodes)
    if held < count:
        raise ClusterTooSmall(count, own, each, held)
    return Placed(count=count, device=device, cpus=own, gpus=each, limits=replicas.limits)


def _on_cpus(node: Node, each: int) -> int:
    return int(node.get("CPU", 0.0) // each)


def _on_gpus(node: Node, each: float) -> int:
    """No replica has parts of two GPUs."""
    gpus = int(node.get("GPU", 0.0))
    return gpus * int(1 / each) if each < 1 else gpus // int(each)


def _largest(nodes: Sequence[Node], count: int) -> int:
    """CPUs that each of so many replicas can have; 1 at least."""
    most = max((_on_cpus(node, 1) for node in nodes), default=0)
    return next((own for own in range(most, 1, -1) if sum(_on_cpus(node, own) for node in nodes) >= count), 1)


def _work(wanted: Wanted, plan: Plan, placed: Placed) -> Work:
    return Work(
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
    )


@contextlib.contextmanager
def _ray(address: str) -> Iterator[list[Node]]:
    """A cluster for the length of the block, quiet; yields its nodes."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise NoRay(f"{error}; pip install 'sidecast[cluster]'") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised as well
    how: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        with _hushed():
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **how)
    except Exception as error:  # of many kinds, of which none has a name of its own
        ray.shutdown()
        raise NoRay(" ".join(str(error).split())) from None
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Nothing reaches standard error: libraries in C++ write there which log level they were given."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextlib.contextmanager
def _faults(placed: Placed) -> Iterator[None]:
    """What Ray raises, as this package's errors."""
    import ray.exceptions

    try:
        yield
    except ray.exceptions.GetTimeoutError:
        raise ClusterBusy(placed.count, placed.cpus, placed.gpus, START_S) from None
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ReplicasLost(f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]) from None


def _reports(work: Work, shards: Sequence[Shard], placed: Placed) -> Iterator[dict[str, Any]]:
    """Of each shard, as it is done."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.wait_for_min_actors_s = START_S  # for ever else, without a word
    names = ray.data.from_items([as_row(each) for each in shards], override_num_blocks=min(len(shards), MAX_CALLS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # until 2.64, there is no other way to bound restarts
        reports = names.map_batches(
            Replica,
            fn_constructor_args=(work,),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(
                size=placed.count,
                max_tasks_in_flight_per_actor=IN_WORK + 1,
                max_concurrent_calls_per_actor=IN_WORK,
                enable_true_multi_threading=True,
            ),
            num_cpus=placed.cpus,
            num_gpus=placed.gpus,
            ray_remote_args_fn=lambda: {"max_restarts": RESTARTS, "max_task_retries": RETRIES},
        )
    with _faults(placed):
        yield from reports.iter_rows()
