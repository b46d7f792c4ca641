"""How many processes of which size a Ray cluster can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serving.offline.errors import ClusterTooSmall
from serving.offline.table import PassLimits

Node = Mapping[str, float]
"""Ray's resources of one node, by name: CPU, GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """Where and how a run computes. None of it changes the answers."""

    address: str = ""
    """Address of a Ray cluster; "" starts Ray on this machine for the length of the run."""
    device: str = "auto"
    """cpu, cuda or auto: cuda if the cluster has GPUs."""
    count: int = 0
    """Replicas. 0: one for each GPU, or without GPUs one for each node."""
    gpus: float = 1.0
    """GPUs of each replica on cuda: a part of one GPU, or whole ones."""
    cpus: int = 0
    """CPUs of each replica. 0: on cpu as many as the nodes have for `count` replicas; on cuda one."""
    limits: PassLimits = field(default_factory=PassLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The replicas of a run, of a size that the cluster can hold. `cpus` and `gpus` are of each replica."""

    count: int
    device: str
    cpus: int
    gpus: float
    limits: PassLimits


def place(replicas: Replicas, nodes: Sequence[Node], shards: int) -> Placed:
    """Choose number, device and size of the replicas. A replica is on one node.

    Args:
        shards: to be answered. There are at most as many replicas.

    Raises:
        ClusterTooSmall
    """
    has_gpus = any(node.get("GPU") for node in nodes)
    device = ("cuda" if has_gpus else "cpu") if replicas.device == "auto" else replicas.device
    gpus = replicas.gpus if device.startswith("cuda") else 0.0
    if gpus:
        room = sum(_fitting_gpus(node, gpus) for node in nodes)
    else:
        room = sum(_fitting_cpus(node, 1) > 0 for node in nodes)
    count = min(replicas.count or room or 1, shards)
    cpus = replicas.cpus or (1 if gpus else _most_cpus(nodes, count))
    fitting = sum(min(_fitting_cpus(node, cpus), _fitting_gpus(node, gpus) if gpus else count) for node in nodes)
    if fitting < count:
        raise ClusterTooSmall(count, cpus, gpus, fitting)
    return Placed(count=count, device=device, cpus=cpus, gpus=gpus, limits=replicas.limits)


def _fitting_cpus(node: Node, cpus: int) -> int:
    """Replicas that a node has CPUs for."""
    return int(node.get("CPU", 0.0) // cpus)


def _fitting_gpus(node: Node, gpus: float) -> int:
    """Replicas that a node has GPUs for. No replica has parts of two GPUs."""
    count = int(node.get("GPU", 0.0))
    return count * int(1 / gpus) if gpus < 1 else count // int(gpus)


def _most_cpus(nodes: Sequence[Node], count: int) -> int:
    """The most CPUs that each of `count` replicas can have; at least 1."""
    most = max((_fitting_cpus(node, 1) for node in nodes), default=0)
    return next((cpus for cpus in range(most, 1, -1) if sum(_fitting_cpus(node, cpus) for node in nodes) >= count), 1)
