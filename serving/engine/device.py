"""Device selection, whether the backbone fits, torch threads and the C heaps."""

import contextlib
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from ladder import Backbone
from ladder.backbone import pick_dtype, read_json, resolve_folder
from ladder.backbone.families import read_config
from serving.config import ServeConfig
from serving.errors import StartError

CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30
BITS = {"int8": 8, "int4": 4, "w8a8": 8}


class BackboneTooLarge(StartError):
    """The backbone does not fit into the device's free memory. Sizes in bytes."""

    reason = "BACKBONE_TOO_LARGE"
    backbone: str
    needed: int
    device: str
    free: int

    def __str__(self) -> str:
        return (
            f"backbone {self.backbone} needs {self.needed / GIB:.1f} GiB on {self.device}, which has "
            f"{self.free / GIB:.1f} GiB free; free some, serve with bfloat16 or --quantize int8, or use a larger one"
        )


class NoDevice(StartError):
    """Torch cannot use the device that the settings name."""

    reason = "NO_DEVICE"
    message = "device {device} cannot be used here: {why}; choose cpu, or auto for a GPU where there is one"
    device: str
    why: str


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
    settings = read_config(read_json(resolve_folder(config.backbone) / "config.json"))
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


Result = TypeVar("Result")

ARENA_MAX = -8
"""glibc's M_ARENA_MAX."""


def share_heaps(count: int = 4) -> None:
    """Have all threads take their memory from so few heaps. Call it before there are many; glibc's alone, else nothing.

    Each of the store's many threads would otherwise get one of up to eight a core, and what a version's file took there
    stays there: a server of a small backbone grew by 50 MB in 60 changes of its registry.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, count)


def trim_heaps() -> None:
    """Give back to the system what is free within the heaps; glibc's alone, else nothing.

    Takes milliseconds, without the interpreter's lock.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def run_apart(work: Callable[..., Result], *args: object) -> Result:
    """Call `work` on a thread of its own that ends with it; returns what it returns, raises what it raises.

    Work that hangs does not keep the process from ending.
    """
    result: Future[Result] = Future()
    thread = threading.Thread(target=_run, args=(result, work, args), name="apart", daemon=True)
    thread.start()
    thread.join()
    try:
        return result.result()
    finally:
        del result  # an error would hold it, and with it itself and all that it was raised among


def run_aside(work: Callable[..., Result], *args: object) -> Result:
    """As `run_apart`, taking one core at most: the others are the device thread's.

    Torch's number of threads is each thread's own, but a new thread begins with what was set last, so it is set back;
    no other thread should meet torch for the first time meanwhile.
    """
    return run_apart(_on_one_core, work, *args)


def _on_one_core(work: Callable[..., Result], *args: object) -> Result:
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(*args)
    finally:
        torch.set_num_threads(usual)


def _run(result: "Future[Result]", work: Callable[..., Result], args: tuple[object, ...]) -> None:
    try:
        result.set_result(work(*args))
    except BaseException as error:  # its caller's, who waits for it
        result.set_exception(error)
        del result
