"""Device selection, whether the backbone fits, and torch threads."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from ladder import Backbone
from ladder.backbone import pick_dtype, read_json, resolve_folder
from ladder.backbone.families import read_config
from serving.config import ServeConfig
from serving.errors import StartError
from vision import count_weights

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
    """Check that a device can be used; `auto` is cuda where there is one, else cpu.

    Raises:
        NoDevice: it cannot be used.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise NoDevice(name, str(error).splitlines()[0]) from None
    return name


def pick_precision(dtype: str, device: str, quantize: str = "none") -> str:
    """Return the precision to serve with; `auto` is what measured fastest: bfloat16 where the device multiplies it.

    Beside a quantised backbone float32 is as fast or faster on a CPU. It goes by the instruction set and not by a
    timing, so that a server answers the same after each start. Training, and `sidecast batch`, whose workers may have
    different processors, use float32 on every CPU.
    """
    if dtype == "auto" and quantize == "none" and torch.device(device).type == "cpu" and has_bfloat16():
        return "bfloat16"
    return dtype


def has_bfloat16() -> bool:
    """Whether this processor has AVX512-BF16 or AMX, and torch may use AVX512 (ATEN_CPU_CAPABILITY can forbid it)."""
    cpu: Any = torch.cpu
    found = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return found and torch.backends.cpu.get_cpu_capability() == "AVX512"


def check_fits(config: ServeConfig, device: str) -> None:
    """Check that the backbone fits on the device, with the vision encoder where the settings name one.

    Raises:
        BackboneTooLarge: their weights alone are larger than what is free.
        BackboneError, EncoderError: there is no such backbone or encoder.
    """
    settings = read_config(read_json(resolve_folder(config.backbone) / "config.json"))
    with torch.device("meta"):
        count = sum(weight.numel() for weight in Backbone(settings, name=config.backbone).parameters())
    itemsize = pick_dtype(pick_precision(config.dtype, device, config.quantize), torch.device(device)).itemsize
    needed = count * (BITS.get(config.quantize) or 8 * itemsize) // 8
    name = config.backbone
    if config.images.vision:
        needed += count_weights(config.images.vision) * itemsize
        name = f"{name} with vision encoder {config.images.vision}"
    free = free_bytes(device)
    if needed > free:
        raise BackboneTooLarge(name, needed, device, free)


def free_bytes(device: str) -> int:
    """Free memory of a GPU, or of this machine within the limit of its container."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return free if limit is None or used is None else min(free, max(0, limit - used + _idle_files()))


def _cgroup(name: str) -> int | None:
    """A figure of this container's control group; None where there is no limit or no group."""
    try:
        return int((CGROUP / name).read_text())
    except (OSError, ValueError):
        return None


def _idle_files() -> int:
    """Bytes of cached files, which count as used but are freed when memory is needed. Kubernetes computes it so too."""
    try:
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


Result = TypeVar("Result")

_OVER = object()
"""What `next` returns after an iterator's last step."""
_ASIDE: set[int] = set()
"""The threads on which work runs aside now."""


def run_apart(work: Callable[..., Result], *args: object) -> Result:
    """Call `work` on a new daemon thread; return what it returns, raise what it raises.

    Work that hangs does not keep the process from ending.
    """
    result: Future[Result] = Future()
    thread = threading.Thread(target=_run, args=(result, work, args), name="apart", daemon=True)
    thread.start()
    thread.join()
    try:
        return result.result()
    finally:
        del result  # else an error's traceback holds the future, and that the error: a cycle that keeps tensors


def run_aside(work: Callable[..., Result], *args: object) -> Result:
    """As `run_apart`, on one core at most, which leaves the others to the device thread.

    Torch keeps its number of threads for each thread, but a new thread starts with the number that was set last. So it
    is set back, and no other thread should use torch for the first time meanwhile.
    """
    return run_apart(_on_one_core, work, *args)


def run_steps_aside(steps: Iterator[None]) -> Iterator[None]:
    """The same steps, each made as `run_aside` makes its work."""
    while not run_aside(_is_over, steps):
        yield


def _is_over(steps: Iterator[None]) -> bool:
    """Make one step; whether there was none left."""
    return next(steps, _OVER) is _OVER


def running_aside() -> int:
    """How much work runs aside now: as many cores are in use."""
    return len(_ASIDE)


def _on_one_core(work: Callable[..., Result], *args: object) -> Result:
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    me = threading.get_ident()
    _ASIDE.add(me)
    try:
        return work(*args)
    finally:
        _ASIDE.remove(me)
        torch.set_num_threads(usual)


def _run(result: "Future[Result]", work: Callable[..., Result], args: tuple[object, ...]) -> None:
    try:
        result.set_result(work(*args))
    except BaseException as error:  # the caller, who waits, raises it
        result.set_exception(error)
        del result
