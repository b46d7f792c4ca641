"""How many cores this process may use, and how long torch's threads look for work before they sleep. Knows no torch.

A container's CPU quota is read from its control group: `cpu.max` of version 2, `cpu.cfs_quota_us` of version 1. Torch
counts the machine's cores and knows no quota: threads beyond it wait for each other until the kernel runs them again.
"""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
"""The control groups of this process: a line ID:CONTROLLERS:PATH each."""
SPINS = "GOMP_SPINCOUNT"
"""GNU OpenMP's variable. It is read once, when its library is loaded, which torch does."""

log = logging.getLogger(__name__)


def cpu_quota(root: Path = CGROUP, own: Path = OWN) -> float | None:
    """The CPU quota of this process in cores, such as 1.5: the least of its group and the groups above; None: none.

    Args:
        root: where the control groups are mounted.
        own: the file that says which of them are those of this process.
    """
    quotas = [quota for folder in _groups(root, own) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def most_threads(root: Path = CGROUP, own: Path = OWN) -> int | None:
    """The most threads of torch that the CPU quota has room for: whole cores, at least one; None: no quota."""
    quota = cpu_quota(root, own)
    return None if quota is None else max(1, int(quota))


def set_spins(count: int) -> None:
    """Set how often a waiting thread of torch looks for work before it sleeps; a negative number changes nothing.

    Call it before torch is imported: later it has no effect, and is logged.
    """
    if count < 0:
        return
    if "torch" in sys.modules:
        log.warning("openmp_spins has no effect: torch is imported already; set %s=%d in the environment", SPINS, count)
        return
    os.environ[SPINS] = str(count)


def _groups(root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's groups that may have a CPU quota, from each group up to the root."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = ["0::/", "0:cpu:/"]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / controllers if (root / controllers).is_dir() else root / "cpu"
        top = mounted if controllers else root
        group = top / path.strip("/")  # outside of the container's view where it sees only its own group, as the top
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _quota(folder: Path) -> float | None:
    """A group's own quota in cores; None where it has none."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        quota = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return quota if quota > 0 else None
