"""What a measurement ran on: processor and its instruction sets, torch, commit. Never a host's name or a path."""

import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CPU_FACTS = Path("/proc/cpuinfo")
"""Linux's description of the processor."""
INSTRUCTION_SETS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx": "amx_tile",
    "asimd": "asimd",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
}
"""Those that change how fast matrices are multiplied (x86, then ARM), by name: the flag in CPU_FACTS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The facts that a figure is worth nothing without."""

    cpu: str
    cores: int
    """That this process may use."""
    instruction_sets: list[str] | None
    """Of INSTRUCTION_SETS, those that the processor has; None where the system does not tell."""
    torch_cpu: str
    """The instruction set that torch's own CPU kernels use, as AVX2. Its matrix library chooses for itself, and may use
    more."""
    gpu: str | None
    """Where torch ran, unless on the CPU."""
    device: str
    dtype: str
    torch: str
    threads: int
    """Torch's, on the CPU."""
    python: str
    system: str
    commit: str
    """Of this project; "unknown" outside a git checkout."""
    modified: bool
    """The code differed from that commit."""
    load: float
    """Processes that wanted a core, mean of the minute before: above 1 or so, others were at work too."""

    @property
    def slug(self) -> str:
        """The GPU's name, or else the CPU's, as a part of a file name."""
        return slug(self.gpu or self.cpu)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def look(device: str = "cpu", dtype: str = "float32") -> Machine:
    """The facts of this machine now. Call it before measuring: it tells how busy others keep the machine."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    return Machine(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instruction_sets=instruction_sets(),
        torch_cpu=torch.backends.cpu.get_cpu_capability(),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        device=device,
        dtype=dtype,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        system=platform.system(),
        commit=_git("rev-parse", "HEAD") or "unknown",
        modified=bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results")),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
    )


def cpu_name() -> str:
    """The processor's model, as the system names it."""
    return _cpu_fact("model name") or platform.processor() or platform.machine() or "unknown"


def instruction_sets() -> list[str] | None:
    """Those of INSTRUCTION_SETS that the processor has; None where the system does not tell, as on macOS."""
    flags = _cpu_fact("flags") or _cpu_fact("Features")  # x86, ARM
    if flags is None:
        return None
    present = set(flags.split())
    return [name for name, flag in INSTRUCTION_SETS.items() if flag in present]


def _cpu_fact(name: str) -> str | None:
    """The first value of that name in CPU_FACTS; None where there is none."""
    try:
        lines = CPU_FACTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def slug(name: str) -> str:
    """`Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz` is intel-xeon-gold-6338."""
    plain = re.sub(r"\((r|tm|c)\)|@.*|\b(cpu|processor|\d+-core)\b", " ", name.lower())
    return "-".join(re.findall(r"[a-z0-9]+", plain)) or "unknown"


def _git(*words: str) -> str:
    """What git prints, without the line's end; empty where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
