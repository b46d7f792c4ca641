"""Which device serves, and whether a backbone fits it: told before, as one that does not may get the process killed."""

from pathlib import Path

import psutil
import torch

from ladder import Backbone
from ladder.config import BackboneConfig
from ladder.loading import pick_dtype, read_json, resolve_folder
from serving.config import ServeConfig
from serving.listening import StartError

CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30
BITS = {"int8": 8, "int4": 4, "w8a8": 8}


class BackboneTooLarge(StartError):
    reason = "BACKBONE_TOO_LARGE"

    def __init__(self, backbone: str, needed: int, device: str, free: int) -> None:
        super().__init__(backbone, needed, device, free)
        self.backbone, self.needed, self.device, self.free = backbone, needed, device, free

    def __str__(self) -> str:
        return (
            f"backbone {self.backbone} needs {self.needed / GIB:.1f} GiB on {self.device}, which has "
            f"{self.free / GIB:.1f} GiB free; free some, serve with bfloat16 or --quantize int8, or use a larger one"
        )


class NoDevice(StartError):
    reason = "NO_DEVICE"

    def __init__(self, device: str, why: str) -> None:
        super().__init__(device, why)
        self.device, self.why = device, why

    def __str__(self) -> str:
        return f"device {self.device} cannot be used here: {self.why}; choose cpu, or auto for a GPU where there is one"


def pick_device(name: str) -> str:
    """`auto` is cuda where there is one. Raises NoDevice."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise NoDevice(name, str(error).splitlines()[0]) from None
    return name


def check_fits(config: ServeConfig, device: str) -> None:
    """
    Raises:
        BackboneTooLarge: its weights alone are more than what is free.
        BackboneError: there is no such backbone.
    """
    settings = BackboneConfig.from_hf(read_json(resolve_folder(config.backbone) / "config.json"))
    with torch.device("meta"):
        count = sum(each.numel() for each in Backbone(settings, name=config.backbone).parameters())
    bits = BITS.get(config.quantize) or 8 * pick_dtype(config.dtype, torch.device(device)).itemsize
    needed, free = count * bits // 8, free_bytes(device)
    if needed > free:
        raise BackboneTooLarge(config.backbone, needed, device, free)


def free_bytes(device: str) -> int:
    """Of a GPU, or of this machine's memory within the limit of its container."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return free if limit is None or used is None else min(free, max(0, limit - used + _idle_files()))


def _cgroup(name: str) -> int | None:
    """None where there is no limit, or no such control group."""
    try:
        return int((CGROUP / name).read_text())
    except (OSError, ValueError):
        return None


def _idle_files() -> int:
    """Bytes of files kept in memory that count as used, and make room where it is needed. As Kubernetes reckons."""
    try:
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0
